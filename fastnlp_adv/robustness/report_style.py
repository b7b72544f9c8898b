"""How the page of attacked texts looks. Radio buttons filter it, so it needs no script."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --text: #1f2328; --page: #fff; --dim: #59636e;
  --red: #b42318; --red-bg: #ffe2df; --green: #116329; --green-bg: #d3f4d8; --amber: #7d4e00; --blue: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --soft: #151b23; --text: #f0f6fc; --page: #0d1117;
  --dim: #9198a1; --red: #ff9b92; --red-bg: #5c1a17; --green: #7ee29a; --green-bg: #0f4a22; --amber: #f0c060;
  --blue: #79c0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 1rem/1.6 system-ui, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
header p { margin: .25rem 0 1rem; }
input[name=outcome] { position: absolute; opacity: 0; }
nav { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .4rem; padding: .5rem 0; background: var(--page); }
nav label { padding: .15rem .7rem; border: 1px solid var(--line); border-radius: 2rem; cursor: pointer; }
nav b { font-weight: 600; color: var(--dim); }
#all:checked ~ nav [for=all], #fooled:checked ~ nav [for=fooled], #robust:checked ~ nav [for=robust],
#wrong:checked ~ nav [for=wrong], #untried:checked ~ nav [for=untried] { background: var(--blue); color: var(--page);
  border-color: var(--blue); }
#all:checked ~ nav [for=all] b, #fooled:checked ~ nav [for=fooled] b, #robust:checked ~ nav [for=robust] b,
#wrong:checked ~ nav [for=wrong] b, #untried:checked ~ nav [for=untried] b { color: inherit; }
#all:focus-visible ~ nav [for=all], #fooled:focus-visible ~ nav [for=fooled], #robust:focus-visible ~ nav [for=robust],
#wrong:focus-visible ~ nav [for=wrong], #untried:focus-visible ~ nav [for=untried] { outline: 2px solid var(--text);
  outline-offset: 2px; }
#fooled:checked ~ main article:not(.fooled), #robust:checked ~ main article:not(.robust),
#wrong:checked ~ main article:not(.wrong), #untried:checked ~ main article:not(.untried) { display: none; }
article { margin: .75rem 0; padding: .6rem .9rem; border: 1px solid var(--line); border-radius: .5rem; }
.about { display: flex; flex-wrap: wrap; gap: 0 .5rem; margin: 0 0 .4rem; color: var(--dim); font-size: .9rem; }
.about b { color: var(--text); overflow-wrap: anywhere; }
.number { min-width: 2ch; }
.outcome { font-weight: 600; }
.edits { margin-inline-start: auto; }
.fooled .outcome, .fooled .about .after { color: var(--red); }
.robust .outcome { color: var(--green); }
.wrong .outcome { color: var(--amber); }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.text + .text { margin-top: .3rem; padding-top: .3rem; border-top: 1px dashed var(--line); }
del, ins { border-radius: .2rem; padding: 0 .1em; }
del { background: var(--red-bg); color: var(--red); text-decoration-thickness: 1px; }
ins { background: var(--green-bg); color: var(--green); text-decoration: none; font-weight: 600; }
ins:empty::before { content: "∅"; font-weight: 400; }
@media print { nav { display: none; } article { break-inside: avoid; } }
"""
