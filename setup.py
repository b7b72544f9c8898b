"""Everything is in setup.cfg, except that setuptools does not fill `{repository}` in."""

from configparser import RawConfigParser
from pathlib import Path

from setuptools import setup

config = RawConfigParser()
config.read(Path(__file__).with_name("setup.cfg"), encoding="utf-8")
repository = config["addresses"]["repository"]
lines = config["metadata"]["project_urls"].strip().splitlines()
addresses = dict(line.split(" = ") for line in lines if repository or "{repository}" not in line)

setup(project_urls={name: address.format(repository=repository) for name, address in addresses.items()})
