"""Settings that would silently do nothing, or that must fail later: refused at once, by name."""

import pytest
import torch

from alight.config import (
    AblationStudyConfig,
    AlignmentStudyConfig,
    DoctorConfig,
    FlowConfig,
    QuickstartConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
    TuneConfig,
)
from alight.config.recipes import load_config, shipped_recipes, validate
from alight.runtime.errors import InputError
from alight.studies import ablation, alignment, quickstart
from alight.studies.grid import all_runs
from alight.training.transformer_step import draw_times

WARP = [1.17, 0.8, 1.1]
LAST = {"sampling": {"last_time": 0.999}}
NO_TERMS = {"cosine_weight": 0, "distance_weight": 0}
SMALL = {"model": {"num_layers": 2, "hidden_size": 24, "num_heads": 2}}


def refused(kind, values):
    with pytest.raises(InputError) as caught:
        validate(kind, values, "test")
    return str(caught.value)


# --- search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"solvers": ["euler", "sde_euler"]}, "solvers sde_euler"),
        ({"solvers": ["sde_heun"]}, "solvers sde_heun"),
        ({"time_warps": [None, WARP]}, "or time_warps"),
        ({"solvers": ["sde_euler"], "time_warps": [WARP]}, "solvers sde_euler and time_warps"),
        ({"solvers": ["mean"], "guidance_scales": [1]}, "solvers mean"),
    ],
)
def test_a_search_says_which_listed_values_do_not_go_with_an_early_end(values, named):
    message = refused(TuneConfig, values | {"draw": LAST})
    assert "last_time is for ODE solvers without a time_warp" in message
    assert named in message
    assert validate(TuneConfig, {"draw": LAST}, "test").draw.sampling.last_time == 0.999
    assert validate(TuneConfig, values, "test").draw.sampling.last_time == 1


@pytest.mark.parametrize("values", [{"timestep_shifts": ["auto"]}, {"timestep_shifts": [1, "auto"]}])
def test_an_automatic_shift_among_the_listed_ones_is_explained_as_elsewhere(values):
    message = refused(TuneConfig, values)
    elsewhere = refused(TuneConfig, {"draw": {"sampling": {"timestep_shift": "auto"}}})
    assert message.partition("auto is")[2] == elsewhere.partition("auto is")[2] != ""
    assert "timestep_shifts auto is none of the numbers" in message


# --- tokenizers and transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [({"num_layers": 4}, "frozen_encoder.num_layers out"), ({"normalise": "channel"}, "frozen_encoder.normalise out")],
)
def test_sizes_of_a_decoder_that_is_there_already_are_refused(values, named):
    assert named in refused(TrainTokenizerConfig, {"init_from": "t", "frozen_encoder": values})
    validate(TrainTokenizerConfig, {"init_from": "t", "frozen_encoder": {}}, "test")


@pytest.mark.parametrize("section", [{}, {"stages": [{"steps": 3}, {"steps": 4, "alignment_weight": 0.1}]}])
def test_alignment_without_any_term_is_refused(section):
    message = refused(TrainTokenizerConfig, section | {"alignment": NO_TERMS})
    assert "set alignment.weight (and that of the stages) to 0" in message
    for change in ({"weight": 0}, {"foundation": None}, {"gram_weight": 1}, {"pooled_weight": 1}, {"patch_weight": 1}):
        if not section or "weight" not in change and "foundation" not in change:
            validate(TrainTokenizerConfig, section | {"alignment": NO_TERMS | change}, "test")


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ({"hidden_size": 256}, "head.hidden_size without head.num_layers"),
        ({"num_heads": 4}, "head.num_heads without head.num_layers"),
        ({"hidden_size": 256, "num_heads": 4}, "head.hidden_size and head.num_heads without"),
    ],
)
def test_sizes_of_a_head_without_layers_are_refused(head, named):
    assert named in refused(TrainTransformerConfig, {"model": {"head": head}})


def test_a_first_time_that_leaves_no_times_is_named():
    with pytest.raises(InputError, match="^flow.first_time 0.999999 leaves hardly any"):
        draw_times(FlowConfig(first_time=0.999999), 0, 4, torch.Generator().manual_seed(0))


def test_a_bad_element_of_a_list_is_the_only_complaint():
    message = refused(TrainTokenizerConfig, {"alignment": {"layers": [-1]}})
    assert "greater than or equal to 1" in message
    assert "at least 1 item" not in message


@pytest.mark.parametrize(("given", "option"), [({"tokenizer": "t"}, "--images"), ({"images": "i"}, "--tokenizer")])
def test_the_doctor_names_the_option_that_is_missing(given, option):
    assert f"{option} FOLDER" in refused(DoctorConfig, given)


# --- studies ------------------------------------------------------------------------------------------------------


def ablation_of(**values):
    config = validate(AblationStudyConfig, values, "test")
    return all_runs(config, ablation.settings(config))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alone": {"x": {}}}, "'x' has no changes"),
        ({"cumulated": {"a": {"latents.flips": False}, "x": {}}}, "'x' has no changes"),
        ({"alone": {"x": {"tokenizer.alignment.weight": 0.1}}}, "'x' is the same as 'unchanged'"),
        ({"alone": {"a": {"latents.flips": False}, "x": {"latents.flips": False}}}, "'x' is the same as 'a'"),
        ({"cumulated": {"a": {"latents.flips": False}, "x": {"latents.flips": False}}}, "'x' is the same as 'a'"),
    ],
)
def test_a_setting_that_changes_nothing_is_refused_by_name(values, words):
    with pytest.raises(InputError, match=words):
        ablation_of(**values)


def test_a_change_may_stand_alone_and_begin_the_cumulated_ones():
    change = {"latents.flips": False}
    runs = ablation_of(alone={"a": change}, cumulated={"b": change, "c": {"transformer.flow.cosine_weight": 0}})
    assert {run.setting for run in runs} == {"unchanged", "a", "b", "c"}


@pytest.mark.parametrize(
    ("alignment", "words"),
    [
        ({"layers": [1, 3]}, "The setting 'x' asks .* for layer 3 .* going to have 2 .* Give numbers from 1 to 2"),
        ({"projection": "components"}, "The setting 'x' asks .* for 32 components, .* 24 wide"),
    ],
)
def test_what_the_studys_own_foundation_model_will_lack_is_refused_before_it_is_trained(alignment, words):
    change = {f"tokenizer.alignment.{name}": value for name, value in alignment.items()}
    with pytest.raises(InputError, match=words):
        ablation_of(foundation=SMALL, alone={"x": change})
    ablation_of(foundation=SMALL, alone={"x": change}, public_foundation="dinov2-base")
    ablation_of(foundation=SMALL, alone={"x": change | {"tokenizer.alignment.foundation": None}})


@pytest.mark.parametrize(
    ("kind", "study"), [(QuickstartConfig, quickstart), (AlignmentStudyConfig, alignment)], ids=["quickstart", "study"]
)
def test_other_recipes_with_their_own_foundation_model_are_checked_too(kind, study):
    small = {"model": {"num_layers": 1, "hidden_size": 24, "num_heads": 2}}
    values = {"foundation": small, "tokenizer": {"alignment": {"layers": [2]}}}
    with pytest.raises(InputError, match=r"for layer 2 .* going to have 1 .* Give 1\."):
        study.wire(validate(kind, values, "test"))


@pytest.mark.parametrize("name", [name for name, job in shipped_recipes().items() if job == "study ablation"])
def test_shipped_ablations_have_no_such_settings(name):
    config = load_config(name)
    assert len(all_runs(config, ablation.settings(config))) >= config.seeds
