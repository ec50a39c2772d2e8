"""Locating checkpoints, against a small hub served on this machine: what is fetched, and every way it can fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch

from leandiffusion.core.errors import CheckpointNotFound, ConfigError, UnsafeFormat
from leandiffusion.core.hub import settings_folder
from leandiffusion.modules.clip_image_processor import CLIPImageProcessor
from leandiffusion.modules.controlnet import ControlNetModel
from leandiffusion.modules.tokenizer import CLIPTokenizer
from leandiffusion.modules.unet import UNet2DConditionModel
from leandiffusion.modules.vae import AutoencoderKL
from leandiffusion.pipelines import open_pipeline
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.schedulers import DDIMScheduler
from leandiffusion.weights.locate import choose_files, find_checkpoint, find_index


def folder_of(*place: Any, **options: Any) -> Path:
    return find_checkpoint(*place, **options).folder


INDEX = json.dumps(
    {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
)
STEM = "diffusion_pytorch_model"
PIPELINE = [
    "model_index.json",
    "README.md",
    "v1-5-pruned.safetensors",
    "unet/config.json",
    f"unet/{STEM}.bin",
    f"unet/{STEM}.safetensors",
    f"unet/{STEM}.non_ema.safetensors",
    f"unet/{STEM}.fp16-00001-of-00002.safetensors",
    f"unet/{STEM}.fp16-00002-of-00002.safetensors",
    f"unet/{STEM}.safetensors.index.fp16.json",
    "vae/config.json",
    f"vae/{STEM}.safetensors",
    f"vae/{STEM}.bin",
    f"vae/{STEM}.msgpack",
    "scheduler/scheduler_config.json",
    "image_encoder/config.json",
    "image_encoder/model.safetensors",
    "unet_onnx/model.onnx",
]
SETTINGS = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"]


@dataclass
class Hub:
    """Repositories as {(name, branch): [file names]}; `requests` is what was asked for."""

    repositories: dict[tuple[str, str], list[str]]
    requests: list[str] = field(default_factory=list)
    cut: int = 0  # how many downloads to break off half-way
    texts: dict[str, str] = field(default_factory=dict)  # what files hold, where it matters
    bytes: dict[str, bytes] = field(default_factory=dict)  # likewise, of files that are no text

    def commit(self, name: str, revision: str) -> str | None:
        for repository, branch in self.repositories:
            commit = hashlib.sha1(f"{repository}@{branch}".encode()).hexdigest()
            if repository == name and revision in (branch, commit):
                return commit
        return None

    def files(self, name: str, commit: str) -> list[str]:
        return next(f for (n, b), f in self.repositories.items() if self.commit(n, b) == commit)

    def content(self, file: str) -> bytes:
        if file == "model_index.json" and file not in self.texts:
            return INDEX.encode()
        if file in self.bytes:
            return self.bytes[file]
        return self.texts[file].encode() if file in self.texts else f"content of {file} ".encode() * 5000


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/api/models").strip("/")
        parts = path.split("/")
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        kind, revision = parts[2:4] or ("revision", "main")
        self.hub.requests.append(path)
        if not any(repository == name for repository, _ in self.hub.repositories):
            return self.fail("RepoNotFound")
        if name == "some/gated":
            return self.fail("GatedRepo", 403)
        commit = self.hub.commit(name, revision)
        if commit is None:
            return self.fail("RevisionNotFound")
        if kind != "resolve":
            return self.send(json.dumps(self.listing(kind, name, commit)).encode(), commit, body)
        if file not in self.hub.files(name, commit):
            return self.fail("EntryNotFound", commit=commit)
        return self.send(self.hub.content(file), commit, body)

    def listing(self, kind: str, name: str, commit: str) -> object:
        files = self.hub.files(name, commit)
        if kind == "tree":
            return [{"type": "file", "path": f, "size": len(self.hub.content(f)), "oid": "0" * 40} for f in files]
        return {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}

    def send(self, content: bytes, commit: str, body: bool) -> None:
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0] or 0)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if body and self.hub.cut and len(content) > 50_000:
            self.hub.cut -= 1
            self.wfile.write(content[begin : begin + 20_000])
        elif body:
            self.wfile.write(content[begin:])

    def fail(self, code: str, status: int = 404, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    fake = Hub({("some/model", "main"): PIPELINE})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": fake}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_what_is_needed_is_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = folder_of("some/model", cache_dir=tmp_path)
    assert fetched(folder) == sorted([*SETTINGS, f"unet/{STEM}.safetensors", f"vae/{STEM}.safetensors"])
    assert folder.name == hub.commit("some/model", "main")
    by_branch = {request for request in hub.requests if "/main/" in request}
    assert by_branch == {"some/model/resolve/main/model_index.json"}, "one file resolves the branch for all others"


def test_a_plan_reads_json_files_only_of_controlnets_too(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    hub.texts = {
        "unet/config.json": json.dumps({**unet.config}),
        "vae/config.json": json.dumps({**AutoencoderKL().config}),
    }
    for name in ("edges", "depth"):
        hub.repositories[f"some/{name}", "main"] = ["config.json", f"{STEM}.safetensors"]
    hub.texts["config.json"] = json.dumps(ControlNetModel.settings_for(unet.config))
    made = Blueprint.of_checkpoint("some/model", torch.float32, torch.device("cpu"))
    both = made.controlled_by(["some/edges", "some/depth"])
    assert both.controls == 2
    assert both.networks["controlnet.1"].build().config.cross_attention_dim == 32
    read = [path.rsplit("/", 1)[-1] for path in fetched(tmp_path) if "snapshots" in path]
    assert sorted(read) == [*["config.json"] * 4, "model_index.json"]


def test_opening_asks_the_hub_once(hub: Hub, tmp_path: Path) -> None:
    """The class is told from the index, then the rest is fetched: what the branch is and holds is asked once."""
    with pytest.raises(ConfigError, match=r"it: pass what is missing by name: text_encoder=…, tokenizer=…\."):
        open_pipeline("some/model", cache_dir=tmp_path)
    assert hub.requests.count("some/model") == 1  # its listing
    about_main = [request for request in hub.requests if "/main/" in request]
    assert set(about_main) == {"some/model/resolve/main/model_index.json"}
    before = len(hub.requests)
    with pytest.raises(ConfigError, match="lacks text_encoder"):
        open_pipeline("some/model", cache_dir=tmp_path)
    assert len(hub.requests) > before, "another opening asks anew: the branch may have moved"


def test_a_branch_that_moves_meanwhile(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened is one commit, though the branch got a new one between two requests."""
    from huggingface_hub import HfApi

    original = HfApi.model_info

    def moved(api: HfApi, name: str, *, revision: str | None, **options: object) -> object:
        info = original(api, name, revision=revision, **options)  # type: ignore[arg-type]
        if revision is None:
            info.sha, info.siblings = "0" * 40, info.siblings[:6]  # type: ignore[index]
        return info

    monkeypatch.setattr(HfApi, "model_info", moved)
    assert (folder_of("some/model", cache_dir=tmp_path) / f"vae/{STEM}.safetensors").is_file()


def test_a_variant_where_it_exists(hub: Hub, tmp_path: Path) -> None:
    folder = folder_of("some/model", variant="fp16", cache_dir=tmp_path, use_safetensors=True)
    weights = [name for name in fetched(folder) if name not in SETTINGS]
    assert weights == sorted([*(n for n in PIPELINE if "fp16" in n), f"vae/{STEM}.safetensors"])


def test_components_left_out(hub: Hub, tmp_path: Path) -> None:
    folder = folder_of("some/model", cache_dir=tmp_path, without=["unet"])
    assert not (folder / "unet").exists()
    folder = folder_of("some/model", cache_dir=tmp_path / "b", subfolders=["vae"])
    assert fetched(folder) == ["model_index.json", "vae/config.json", f"vae/{STEM}.safetensors"]


def test_several_controlnets_as_one_component(hub: Hub, tmp_path: Path) -> None:
    """The others lie in folders that the index does not name."""
    index = {"controlnet": ["diffusers", "MultiControlNetModel"], "unet": ["diffusers", "UNet2DConditionModel"]}
    hub.texts["model_index.json"] = json.dumps(index)
    nets = [f"{folder}/{name}" for folder in ("controlnet", "controlnet_1", "controlnet_2")
            for name in ("config.json", f"{STEM}.safetensors")]  # fmt: skip
    files = ["model_index.json", "unet/config.json", f"unet/{STEM}.safetensors"]
    hub.repositories["some/nets", "main"] = [*files, *nets, "controlnet_notes/config.json", "unet_1/config.json"]
    assert fetched(folder_of("some/nets", cache_dir=tmp_path)) == sorted([*files, *nets])
    without = folder_of("some/nets", cache_dir=tmp_path / "b", without=["controlnet"])
    assert fetched(without) == sorted(files)


def test_a_single_component(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["some/vae", "main"] = ["config.json", f"{STEM}.safetensors", f"{STEM}.bin", "README.md"]
    folder = folder_of("some/vae", cache_dir=tmp_path)
    assert fetched(folder) == ["config.json", f"{STEM}.safetensors"]


def test_cached_and_offline(hub: Hub, tmp_path: Path) -> None:
    folder = folder_of("some/model", cache_dir=tmp_path)
    asked = len(hub.requests)
    assert folder_of("some/model", cache_dir=tmp_path, local_files_only=True) == folder
    assert len(hub.requests) == asked, "local_files_only asks nobody"
    with pytest.raises(CheckpointNotFound, match=r"variant='fp16'.*plain weights") as caught:
        folder_of("some/model", cache_dir=tmp_path, local_files_only=True, variant="fp16")
    assert str(tmp_path) in str(caught.value)


def test_an_unreachable_hub_falls_back_to_the_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = folder_of("some/model", cache_dir=tmp_path)
    dead = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}")
    assert folder_of("some/model", cache_dir=tmp_path) == folder
    with pytest.raises(CheckpointNotFound, match=r"cannot be reached and not cached: searched .*elsewhere"):
        folder_of("some/model", cache_dir=tmp_path / "elsewhere")


def test_offline_and_not_cached(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with pytest.raises(CheckpointNotFound, match=f"offline and not cached: searched {tmp_path}"):
        folder_of("some/model", cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointNotFound, match="offline and not cached"):
        folder_of("some/model", cache_dir=tmp_path)
    assert not hub.requests


def test_partly_cached_and_offline(hub: Hub, tmp_path: Path) -> None:
    folder = folder_of("some/model", cache_dir=tmp_path)
    (folder / f"vae/{STEM}.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match=r"offline.*vae has no safetensors"):
        folder_of("some/model", cache_dir=tmp_path, local_files_only=True)
    folder_of("some/model", cache_dir=tmp_path, local_files_only=True, without=["vae"])


def test_a_broken_download_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 1
    folder = folder_of("some/model", cache_dir=tmp_path)
    for name in fetched(folder):
        assert (folder / name).read_bytes() == hub.content(name)
    assert hub.cut == 0


@pytest.mark.parametrize("variants_on", ["main", "branch"])
def test_the_old_fp16_revision(hub: Hub, tmp_path: Path, variants_on: str) -> None:
    """It means the variant where main has it, and the branch's plain weights elsewhere."""
    if variants_on == "branch":
        hub.repositories = {
            ("some/model", "main"): [name for name in PIPELINE if "fp16" not in name],
            ("some/model", "fp16"): [name for name in PIPELINE if "fp16" not in name],
        }
    found = find_checkpoint("some/model", revision="fp16", cache_dir=tmp_path)
    assert found.variant == ("fp16" if variants_on == "main" else None)
    assert found.folder.name == hub.commit("some/model", "main" if variants_on == "main" else "fp16")
    assert not any("non_ema" in name for name in fetched(found.folder))
    assert (find_index("some/model", revision="fp16", cache_dir=tmp_path) / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("some/nothing", {}, "neither a local folder nor a model on the hub"),
        ("some/model", {"revision": "v9"}, "no revision 'v9'"),
        ("some/gated", {}, "accept its terms"),
        ("some/files", {}, "not a pipeline or component"),
        ("some/model", {"variant": "int4"}, r"no component has weights of variant='int4'.*'fp16'"),
        ("./some/model", {}, "no such folder"),
        ("/nowhere/model", {}, "no such folder"),
        ("a/b/c", {}, "not a hub id"),
    ],
)
def test_what_is_not_there(hub: Hub, tmp_path: Path, name: str, options: dict[str, str], told: str) -> None:
    hub.repositories["some/gated", "main"] = PIPELINE
    hub.repositories["some/files", "main"] = ["model.safetensors", "README.md"]
    with pytest.raises(CheckpointNotFound, match=told):
        folder_of(name, cache_dir=tmp_path, **options)  # type: ignore[arg-type]


def test_settings_alone(hub: Hub, tmp_path: Path) -> None:
    """Schedulers, tokenizers and configs by hub id fetch their small files, and find them again offline."""
    small = {
        "scheduler/scheduler_config.json": '{"_class_name": "PNDMScheduler", "beta_end": 0.012}',
        "unet/config.json": '{"attention_head_dim": 7}',
        "tokenizer/vocab.json": '{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "a": 3}',
        "tokenizer/merges.txt": "#version: 0.2\n",
        "feature_extractor/preprocessor_config.json": '{"size": 24}',
    }
    hub.repositories["some/model", "main"] = sorted({*PIPELINE, *small})
    hub.texts = small
    for offline in (False, True):
        where: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": offline}
        asked = len(hub.requests)
        assert DDIMScheduler.from_pretrained("some/model", subfolder="scheduler", **where).config.beta_end == 0.012
        assert UNet2DConditionModel.load_config("some/model", subfolder="unet", **where) == {"attention_head_dim": 7}
        tokenizer = CLIPTokenizer.from_pretrained("some/model", subfolder="tokenizer", model_max_length=9, **where)
        assert (tokenizer("a").input_ids, tokenizer.model_max_length) == ([1, 0, 2], 9)
        processor = CLIPImageProcessor.from_pretrained("some/model", subfolder="feature_extractor", **where)
        assert processor.config.size == 24
        assert (len(hub.requests) == asked) == offline
    [folder] = (tmp_path / "models--some--model" / "snapshots").iterdir()
    assert fetched(folder) == sorted(["model_index.json", *small])
    with pytest.raises(CheckpointNotFound, match=r"has no scheduler_config\.json: name a folder"):
        DDIMScheduler.from_pretrained("some/model", cache_dir=tmp_path)
    with pytest.raises(CheckpointNotFound, match=r"no CLIP tokenizer in .*unet"):
        CLIPTokenizer.from_pretrained("some/model", subfolder="unet", cache_dir=tmp_path)
    with pytest.raises(CheckpointNotFound, match="not a hub id"):
        DDIMScheduler.from_pretrained("./some/model")


def test_pickles(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["some/old", "main"] = [name for name in PIPELINE if not name.endswith(".safetensors")]
    with pytest.raises(UnsafeFormat, match="unet has only pickled weights"):
        folder_of("some/old", cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="use_safetensors=False"):
        folder_of("some/model", cache_dir=tmp_path, use_safetensors=False)


def test_local_folders_and_files(tmp_path: Path) -> None:
    assert folder_of(tmp_path) == tmp_path
    assert find_checkpoint(tmp_path, variant="fp16").variant == "fp16"
    assert find_checkpoint(tmp_path, revision="fp16").variant is None
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / f"{STEM}.fp16.safetensors").touch()
    assert find_checkpoint(tmp_path, revision="fp16").variant == "fp16"
    for name in ("a.safetensors", "a.ckpt"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointNotFound, match="from_single_file"):
        folder_of(tmp_path / "a.safetensors")
    with pytest.raises(UnsafeFormat, match="pickle"):
        folder_of(tmp_path / "a.ckpt")


def test_other_formats_are_left(tmp_path: Path) -> None:
    names = ["text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin",
             "text_encoder/flax_model.msgpack", "text_encoder/pytorch_model.bin.index.json", "tokenizer/vocab.json",
             "tokenizer/merges.txt", "tokenizer/special_tokens_map.json"]  # fmt: skip
    assert choose_files(names, ["text_encoder", "tokenizer"], None) == [
        "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json", "tokenizer/vocab.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("https://huggingface.co/stabilityai/sdxl-vae", "pass the model's hub id, 'stabilityai/sdxl-vae'"),
        ("huggingface.co/a/b/", "'a/b'"),
        ("https://huggingface.co/a/b/tree/main", "'a/b'"),
        ("https://huggingface.co/a/b?library=diffusers", "'a/b'"),
        (
            "https://huggingface.co/a/b/blob/main/x/y.safetensors",
            r"hf download a/b x/y\.safetensors\), and open it with from_single_file; or open the whole model, 'a/b'",
        ),
        ("https://huggingface.co/a/b/resolve/main/y.safetensors?download=true", r"a/b y\.safetensors\)"),
        ("https://civitai.com/api/download/models/1", "web address: download the file"),
        ("https:/huggingface.co/a/b", "'a/b'"),
        ("x" * 5000, "no such folder"),
        ("~nobody-of-that-name/model", "no such folder"),
        ("a\0b", "no such folder"),
    ],
    ids=lambda value: value[:40] if value.isprintable() else "nul",
)
def test_what_is_no_model(given: str, told: str) -> None:
    for find in (find_checkpoint, lambda name: settings_folder(name, ["config.json"])):
        with pytest.raises(CheckpointNotFound, match=told) as caught:
            find(given)
        assert len(str(caught.value)) < 500


def test_a_download_that_was_cut_off_is_mentioned(tmp_path: Path) -> None:
    blobs = tmp_path / "models--some--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "4d7a.incomplete").write_bytes(b"half")
    with pytest.raises(CheckpointNotFound, match=r"1 downloads in .* are incomplete: go online once") as caught:
        find_checkpoint("some/model", cache_dir=tmp_path, local_files_only=True)
    assert len(str(caught.value)) < 500


def test_textual_inversions_by_hub_id(hub: Hub, tmp_path: Path) -> None:
    """The usual file, one by name, pickles refused with a line that converts them, and from the cache when offline."""
    import torch
    from safetensors.torch import save

    from leandiffusion.families.inversion import read_inversion

    vectors = torch.arange(6.0).reshape(2, 3)
    hub.repositories["some/toy", "main"] = ["README.md", "learned_embeds.safetensors", "other.safetensors"]
    hub.repositories["some/old", "main"] = ["learned_embeds.bin"]
    hub.bytes["learned_embeds.safetensors"] = save({"<cat-toy>": vectors})
    hub.bytes["other.safetensors"] = save({"<dog-toy>": vectors + 1})
    for offline in (False, True):
        (usual,) = read_inversion("some/toy", cache_dir=tmp_path, local_files_only=offline)
        assert usual.word == "<cat-toy>"
        assert torch.equal(usual.vectors, vectors)
    (named,) = read_inversion("some/toy", "<mine>", "other.safetensors", cache_dir=tmp_path)
    assert named.word == "<mine>"
    assert torch.equal(named.vectors, vectors + 1)
    with pytest.raises(UnsafeFormat, match=r"some/old on the hub.*Convert one that you trust"):
        read_inversion("some/old", cache_dir=tmp_path)
    with pytest.raises(CheckpointNotFound, match="some/nothing"):
        read_inversion("some/nothing", cache_dir=tmp_path)
