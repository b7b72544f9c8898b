"""
Whether the Hugging Face hub can be reached. Without this check its client retries for half a minute.
"""

import urllib.error
import urllib.request

import datasets
import huggingface_hub.constants as hub

SECONDS = 5


def offline() -> bool:
    """
    Check once whether the hub answers; if not, use only files that earlier runs have cached.

    :return: ``True`` when the hub cannot be reached, or when the user has set ``HF_HUB_OFFLINE``.
    """
    if not hub.HF_HUB_OFFLINE and not _answers(hub.ENDPOINT):
        hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return hub.HF_HUB_OFFLINE


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=SECONDS):
            return True
    except urllib.error.HTTPError:  # an answer, if not a welcome
        return True
    except OSError:
        return False
