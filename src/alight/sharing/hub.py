"""Uploads to the Hugging Face hub, with a check of the access before any work."""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired

from huggingface_hub import HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from alight.runtime.errors import InputError, one_line

LATER = "Leave out --push-to-hub to export now, and upload the folder later with 'hf upload {repository} FOLDER'."


class _Organisation(TypedDict):
    name: str


class _Account(TypedDict):
    """The used fields of the hub's answer about a user."""

    name: str
    orgs: NotRequired[list[_Organisation]]


def check_access(repository: str) -> None:
    """Check that the hub can be reached, and that the user may write to the repository.

    Raises:
        InputError: they cannot.
    """
    later = LATER.format(repository=repository)
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"HF_HUB_OFFLINE is set, so nothing can be uploaded to {repository}. Unset it. {later}")
    if get_token() is None:
        raise InputError(
            f"You are not logged in to the hub, so nothing can be uploaded to {repository}. Run 'hf auth login', or "
            f"set HF_TOKEN to a token with write permission. {later}"
        )
    try:
        account = TypeAdapter(_Account).validate_python(HfApi().whoami())
    except HfHubHTTPError as error:
        raise InputError(
            f"The hub does not accept your token ({one_line(error)}). Run 'hf auth login' again with one that may "
            f"write to {repository}. {later}"
        ) from error
    except ValidationError as error:
        raise InputError(
            f"The hub at {constants.ENDPOINT} does not say who you are ({one_line(error)}). Check its address. {later}"
        ) from error
    except Exception as error:  # of the network, in many types
        raise InputError(
            f"The hub at {constants.ENDPOINT} cannot be reached ({one_line(error)}). Check the network. {later}"
        ) from error
    owner = repository.split("/")[0]
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", ()))]
    if owner not in owners:
        raise InputError(
            f"You are {account['name']} on the hub, who cannot write to {repository}. Choose a name under "
            f"{' or '.join(owners)}."
        )


def upload(folder: Path, files: Sequence[str], repository: str, private: bool) -> str:
    """Upload exactly these files of a folder, and return the URL of the repository.

    Args:
        folder: holds the files; other files in it are not uploaded.
        files: their paths within the folder.
        repository: owner/name; created if it does not exist.
        private: make a new repository private; an existing one keeps its visibility.

    Raises:
        InputError: the hub refuses the upload, or the connection is lost.
    """
    try:
        ModelCard.load(folder / "README.md").validate()
        url = HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(files), commit_message="Upload with alight"
        )
    except Exception as error:
        raise InputError(
            f"{folder} is complete, but uploading it to {repository} failed ({one_line(error)}). Run the same "
            "command again."
        ) from error
    return str(url)
