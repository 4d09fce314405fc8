"""Models on the Hugging Face hub and saved detectors: a folder with the weights, their settings and a model card."""

import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from deformable_detr.checkpoints.model_card import model_card
from deformable_detr.checkpoints.native import save_weights
from deformable_detr.checkpoints.tensor_files import INDEX_SUFFIX, shard_names
from deformable_detr.config import Metadata
from deformable_detr.files import atomic_folder, write_json, write_text
from deformable_detr.model.plain import network_of

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
OWN_FOLDERS = ("runs/", "demo/")
"""Where this package writes what it trains, if not told otherwise. An owner of that name is behind `hf://`."""

FILE_SUFFIXES = (".pth", ".pt", ".pt2", ".bin", ".ckpt", ".pkl", ".safetensors", ".onnx", ".xml", ".engine", ".tflite", ".pte")
FILE_SUFFIXES += (".h5", ".npz", ".msgpack", ".json", ".yaml", ".yml", ".zip", ".tar", ".gz")
"""Of files that hold or describe weights: no model on the hub is meant."""

_SIDE_FILES = ("config.json", "preprocessor_config.json")
_HUB_NAME = re.compile(r"(hf://)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+?))?(/(?P<file>[^@]+\.safetensors))?")


def is_hub_name(source: str | Path) -> bool:
    """Whether a text names a model on the hub: `hf://owner/name`, or `owner/name` where there is no folder `owner`."""
    if not isinstance(source, str):
        return False
    if source.startswith("hf://"):
        return True
    if Path(source).parent.is_dir() or source.startswith(OWN_FOLDERS):  # a path that leads nowhere
        return False
    return bool(_HUB_NAME.fullmatch(source)) and Path(source).suffix.lower() not in FILE_SUFFIXES


def download(source: str, revision: str | None = None) -> Path:
    """Fetch a model from the hub, or find it in the hub's cache; only safetensors, never a pickle.

    Args:
        source: `[hf://]owner/name[@revision][/file.safetensors]`.
        revision: branch, tag or commit; None: that in `source`, else `main`.

    Returns:
        The weights file, with `config.json` and `preprocessor_config.json` beside it where there are any.

    Raises:
        ValueError: no such name is possible.
        FileNotFoundError: no such model, revision or file.
        ConnectionError: the hub cannot be reached, and the cache does not have it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise ValueError(f"{source!r} is not a name on the hub: expected hf://owner/name[@revision][/file.safetensors]")
    repo, revision = match["repo"], revision or match["revision"]
    if not source.startswith("hf://"):
        logger.info("no file or folder %s: asking the Hugging Face hub for a model of that name", source)
    try:
        path = _download_weights(repo, match["file"], revision)
    except LocalEntryNotFoundError as error:
        raise _out_of_reach(source, error) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no file, folder or hub model {source!r}, or it is private: log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the hub model {repo} has no revision {revision!r}") from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"the hub model {repo} has no {match['file'] or WEIGHTS_NAME}: only safetensors are read from the hub, never pickles"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise _out_of_reach(source, error) from error
    for name in _SIDE_FILES:
        try:
            hf_hub_download(repo, name, revision=revision)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            logger.debug("%s has no %s", repo, name)
    logger.info("%s: revision %s", repo, path.parent.name)
    return path


def _download_weights(repo: str, name: str | None, revision: str | None) -> Path:
    """One file, or where the weights are in several, all of them; then the path is that of their index."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name or WEIGHTS_NAME, revision=revision))
    except EntryNotFoundError as error:
        if name is not None or isinstance(error, LocalEntryNotFoundError):  # the hub was not reached
            raise
        try:
            index = Path(hf_hub_download(repo, WEIGHTS_NAME + INDEX_SUFFIX, revision=revision))
        except EntryNotFoundError:
            raise error from None
    for shard in shard_names(index):
        hf_hub_download(repo, shard, revision=revision)
    return index


def _out_of_reach(source: str, error: Exception) -> OSError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if source.startswith("hf://"):
        return ConnectionError(
            f"{source} is neither in the hub's cache nor can it be fetched ({reason}). Download it elsewhere and pass the folder"
        )
    return FileNotFoundError(
        f"there is no file or folder {source}; as a model on the hub it is neither in the cache nor can it be fetched ({reason})"
    )


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    metadata: Metadata | None = None,
    license: str | None = None,
    name: str | None = None,
) -> Path:
    """Write the weights, their settings and a model card; `load_pretrained(folder)` reads them.

    Args:
        model: the detector.
        folder: is made.
        metadata: instead of `model.metadata`.
        license: of the weights, such as `apache-2.0`; None: the card says that it is not stated.
        name: title of the card; None: the folder's name.
    """
    folder = Path(folder)
    metadata = metadata or network_of(model).metadata
    with atomic_folder(folder, merge=True) as partial:
        save_weights(partial / WEIGHTS_NAME, model, metadata=metadata)
        write_json(partial / "config.json", metadata.to_dict(), indent=2)
        write_text(partial / "README.md", model_card(metadata, name=name or folder.resolve().name, license=license))
    return folder


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    metadata: Metadata | None = None,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload of a Deformable DETR",
) -> Any:
    """Make a model on the hub, or a new version of one, with weights and model card.

    Args:
        model: the detector.
        repo_id: `owner/name`.
        metadata: instead of `model.metadata`.
        license: of the weights.
        private: of a new model.
        token: None: the one that is logged in.
        commit_message: of the version.

    Returns:
        The hub's response, with the address of the version.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise ValueError(f"{repo_id!r} is not a name on the hub: expected owner/name")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, metadata=metadata, license=license, name=repo_id.split("/")[1])
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
