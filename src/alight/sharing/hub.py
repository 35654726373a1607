"""The Hugging Face hub: whether an upload can work, before anything is done for it, and the upload."""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired

from huggingface_hub import HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from alight.runtime.errors import InputError

LATER = "Leave out --push-to-hub to export now, and upload the folder later with 'hf upload {repository} FOLDER'."


class _Organisation(TypedDict):
    name: str


class _Account(TypedDict):
    """The fields that are used of the hub's answer about a user."""

    name: str
    orgs: NotRequired[list[_Organisation]]


def check_access(repository: str) -> None:
    """Find out whether the hub can be reached, and knows the user as somebody who may write there.

    Raises:
        InputError: names what is in the way.
    """
    later = LATER.format(repository=repository)
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"HF_HUB_OFFLINE is set, so nothing can be uploaded to {repository}. Unset it. {later}")
    if get_token() is None:
        raise InputError(
            f"Nobody is logged in to the hub, so nothing can be uploaded to {repository}. Run 'hf auth login', or set "
            f"HF_TOKEN to a token that may write. {later}"
        )
    try:
        account = TypeAdapter(_Account).validate_python(HfApi().whoami())
    except HfHubHTTPError as error:
        raise InputError(
            f"The hub does not accept the token of this machine ({_one_line(error)}). Run 'hf auth login' again with "
            f"one that may write to {repository}. {later}"
        ) from error
    except ValidationError as error:
        raise InputError(
            f"The hub at {constants.ENDPOINT} does not say who you are ({_one_line(error)}). Check its address. "
            f"{later}"
        ) from error
    except Exception as error:  # of the network: the libraries below have dozens of kinds
        raise InputError(
            f"The hub at {constants.ENDPOINT} cannot be reached ({_one_line(error)}). Check the network. {later}"
        ) from error
    owner = repository.split("/")[0]
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", ()))]
    if owner not in owners:
        raise InputError(
            f"You are {account['name']} on the hub, who cannot write to {repository}. Choose a name under "
            f"{' or '.join(owners)}."
        )


def upload(folder: Path, files: Sequence[str], repository: str, private: bool) -> str:
    """Upload exactly these files of a folder.

    Args:
        folder: holds them, and perhaps others, which stay here.
        files: their paths within the folder.
        repository: owner/name; made if it is not there yet.
        private: whether a new one is hidden from others. One that is there stays as it is.

    Returns:
        Where it can be seen.

    Raises:
        InputError: the hub refuses it, or was lost on the way.
    """
    try:
        ModelCard.load(folder / "README.md").validate()
        url = HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(files), commit_message="Upload with alight"
        )
    except Exception as error:
        raise InputError(
            f"{folder} is complete, but uploading it to {repository} failed ({_one_line(error)}). Run the same "
            "command again."
        ) from error
    return str(url)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
