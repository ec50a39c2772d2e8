"""What mkdocs does not do by itself for `make docs`: pages of the API drawn from the code's own lists, the pages of the
repository that lie outside docs/, and a check that the finished site loads nothing from another host.

Set as a hook in mkdocs.yml.
"""

from __future__ import annotations

import os
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import leandiffusion
from leandiffusion.pipelines.attached import Attached
from leandiffusion.pipelines.base import DiffusionPipeline
from leandiffusion.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from leandiffusion.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from leandiffusion.schedulers import PRESETS, Scheduler
from leandiffusion.techniques import Technique, techniques

ROOT = Path(__file__).parents[1]
# Pages outside docs/, and what they show or link to.
ALSO = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/*.md",
    "benchmarks/*.py",
    "benchmarks/results/*",
    "benchmarks/attached/*",
    "benchmarks/plan/*",
    "benchmarks/plan_limits/*",
    "benchmarks/plan_sweep/*",
)
NOT_LINKED = {".md"}  # in benchmarks/results: tables drawn while measuring, which git ignores

INTRODUCTIONS = {
    "pipelines": "# Pipelines\n\nAll of these are names of `leandiffusion`: `from leandiffusion import …`.",
    "techniques": "# Techniques\n\nTheir settings and errors. What each saves and costs stands in the "
    "[price list](../techniques.md). A pipeline takes them by name, `pipe.enable(\"vae_tiling\", rows=64)`, or as "
    "objects of these classes.",
    "plan": "# Plans\n\nWhat `pipe.plan_for` gives, a file keeps and `pipe.apply` switches on: [which settings]"
    "(../guide/which-settings.md).",
    "schedulers": "# Schedulers\n\nAll of these are names of `leandiffusion` and of `leandiffusion.schedulers`. Short "
    "names, as `generate --scheduler` takes them: ",
    "modules": "# Networks\n\nAll of these are names of `leandiffusion`. Tensors have the shapes and names of the "
    "published checkpoints.",
    "core": "# Errors\n\nAll of these are names of `leandiffusion`. Each message says what was found, what was "
    "expected and what to do next.",
}  # fmt: skip


BESIDES = {
    "pipelines": (DiffusionPipeline, Attached, StableDiffusionPipelineOutput, StableDiffusionXLPipelineOutput),
    "schedulers": (Scheduler,),
}  # what is no name of `leandiffusion`, but a base or a result of those that are


def on_files(files: Files, config: Any) -> Files:
    """mkdocs' hook: the site has these files besides those in docs/."""
    for pattern in ALSO:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if not (name.startswith("benchmarks/results/") and path.suffix in NOT_LINKED):
                files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    if missing := {room.split(".")[0] for room in leandiffusion._ROOMS} - INTRODUCTIONS.keys():
        raise PluginError(f"public names of {', '.join(sorted(missing))} have no page: add one to tools/docs_site.py")
    for room in INTRODUCTIONS:
        files.append(File.generated(config, f"reference/{room}.md", content=reference(room)))
    return files


def reference(room: str) -> str:
    """The page about the public objects of a room. A class that has its base on the page shows what it adds to it."""
    introduction = INTRODUCTIONS[room]
    if room == "schedulers":
        introduction += ", ".join(f"`{name}`" for name in PRESETS)
    things, parts = objects(room), [introduction]
    for thing in things:
        bases = thing.__mro__[1:] if isinstance(thing, type) else ()
        inherited = str(not set(bases) & set(things)).lower()
        parts.append(f"::: {thing.__module__}.{thing.__qualname__}\n    options:\n      inherited_members: {inherited}")
    return "\n\n".join([*parts, ""])


def objects(room: str) -> list[Any]:
    """The room's public objects, each once, in the order in which they are public; what their calls return, too."""
    if room == "techniques":
        classes = [techniques.get(name) for name in techniques]
        return [Technique, *sorted(classes, key=lambda cls: (cls.phase, cls.title))]
    names = [name for name in leandiffusion.__all__ if leandiffusion._ROOM_OF.get(name, "").split(".")[0] == room]
    return list(dict.fromkeys([*BESIDES.get(room, ()), *(getattr(leandiffusion, name) for name in names)]))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """mkdocs' hook: links between files as they lie in the repository become links between pages."""
    here = page.file.src_uri
    return re.sub(r"(\]\()(?!\w+:|#)([^)#\s]+)", lambda found: found[1] + translated(here, found[2]), markdown)


def translated(here: str, link: str) -> str:
    """A relative link on the page `here`, both as in the repository, as mkdocs lays the pages out."""
    there = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(here)), link))
    return posixpath.relpath(there.removeprefix("docs/"), posixpath.dirname(here) or ".")


def in_repository(page: str) -> str:
    return page if (ROOT / page).exists() else f"docs/{page}"


class _Loaded(HTMLParser):
    """Addresses on other hosts that a page loads something from: links that a reader may follow do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data") or (name == "href" and tag != "a"):
                self.found |= set(re.findall(r"(?:https?:)?//[^\s,]+", value or ""))


def on_post_build(config: Any) -> None:
    """mkdocs' hook: an error if the site loads anything from another host."""
    site = Path(config.site_dir)
    for path in site.rglob("*.html"):
        parser = _Loaded()
        parser.feed(path.read_text(encoding="utf-8"))
        if parser.found:
            raise PluginError(f"{path} loads from another host: {', '.join(sorted(parser.found))}")
    for path in site.rglob("*.css"):
        if found := re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^)\"']+)", path.read_text(encoding="utf-8")):
            raise PluginError(f"{os.path.relpath(path)} loads from another host: {', '.join(found)}")
