"""The record of how the sampling settings of a pipeline were chosen, so that a figure can be read with it in mind."""

from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue, with_config
from typing_extensions import TypedDict

NOT_RECORDED = "No search for sampling settings is recorded; settings may have been chosen by other means."


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="forbid"))
class Selection(TypedDict):
    """A search that chose sampling settings, stored in the index of a pipeline as `selection`.

    Attributes:
        tried: number of settings that were measured.
        varied: the values of every setting of which more than one was tried.
        measure: name of the distance that chose.
        images: number of generated images of each measurement.
        seed: of their labels and noise.
        distance: of the chosen settings.
        ahead: share by which the lowest distance lies below the next, a measure of luck; None = nothing to compare.
        within: share above the lowest distance that was accepted for a lower cost.
    """

    tried: Annotated[int, Field(ge=1)]
    varied: dict[str, list[JsonValue]]
    measure: str
    images: Annotated[int, Field(ge=1)]
    seed: int
    distance: float
    ahead: float | None
    within: float


def selection_text(selection: Selection | None) -> str:
    """The record in a paragraph, for reports and model cards."""
    if selection is None:
        return NOT_RECORDED
    varied = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in selection["varied"].items())
    among = f" ({varied})" if varied else ""
    rule = f"the cheapest within {selection['within']:.0%} of" if selection["within"] else "those with"
    ahead = "" if selection["ahead"] is None else f" The lowest was {selection['ahead']:.1%} below the next."
    samples = f"{selection['images']:,} images with seed {selection['seed']}"
    return (
        f"Sampling settings were chosen by a search over {selection['tried']}{among}: {rule} the lowest "
        f"{selection['measure']} of {samples}.{ahead} On the images of the search, figures of the chosen settings are "
        "a little too good; another seed gives fair ones."
    )
