"""The training loop at one and at two ranks, with real process groups."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from cloze_api.training import Arithmetic
from cloze_trainer.arithmetic import offered

pytestmark = pytest.mark.timeout(300)


PEAK = 1e6
STEADY = {"name": "steady", "peak": PEAK}
# A hundred and twenty steps, of whose batches forty unlearn what was learnt.
ASCENT: dict[str, Any] = {
    "ascent": [30, 70],
    "every": 5,
    "optimization": {"epochs": 40, "learningRate": 3e-3, "maxLossRise": 0.3, "maxRollbacks": 5},
}
SCENARIOS = [
    STEADY,
    {"name": "profiled", "profile": {"fromStep": 2, "steps": 3}},
    {"name": "two", "nan": [1, 3]},
    {"name": "three", "nan": [1, 4]},
    {"name": "hopeless", "nan": [1, 4], "optimization": {"maxRollbacks": 0}},
    {"name": "endless", "nan": [1, 1000]},
    {"name": "empty", "empty": [20, 40], "every": 60, "optimization": {"epochs": 40, "maxLossRise": 0.3}},
    {"name": "bf16", "optimization": {"arithmetic": "bf16"}},
    {"name": "ascent", **ASCENT},
    {"name": "tokens", "tokens": 200},
    {"name": "tokens-crashing", "tokens": 200, "crash": [1, 4]},
    {"name": "crowded", "fits": {"0": 16}},
    {"name": "crowded-crashing", "fits": {"0": 16}, "crash": [2, 4]},
    {"name": "full", "fits": {"0": 3}},
    # Before it is noticed, and after the first and the second rollback.
    {"name": "crashing", **ASCENT, "crash": [41, 66, 82]},
]
# From the batch on of which the training unlearns, no evaluation is better.
STOPPING: dict[str, Any] = {
    "ascent": [30, 1000],
    "every": 2,
    "optimization": {
        "epochs": 40,
        "learningRate": 3e-3,
        "maxLossRise": 1000,
        "earlyStopping": {"figure": "log_loss", "patience": 3},
    },
}
CHOOSING = {**ASCENT, "optimization": {**ASCENT["optimization"], "earlyStopping": {"patience": 100, "everySteps": 4}}}
SCENARIOS += [
    {"name": "stopping", **STOPPING},
    # After the best step, once with a checkpoint between.
    {"name": "stopping-crashing", **STOPPING, "crash": [7, 31, 37]},
    {"name": "stopping-suspended", **STOPPING, "stop": {"rank": 0, "batches": [8], "evaluations": [4]}},
    {"name": "choosing", **CHOOSING},
    {"name": "choosing-crashing", **CHOOSING, "crash": [41, 66, 82]},
]
SMALL_IN_PRIVATE: dict[str, Any] = {"noise": 1.0, "optimization": {"lora": {"rank": 2, "dropout": 0.1}}}
TAUGHT = {"teacher": {"weight": 0.7, "temperature": 3, "relation": {"weight": 2}}}
SCENARIOS += [
    {"name": "taught", **TAUGHT},
    {"name": "taught-crashing", **TAUGHT, "crash": [1, 4]},
    {"name": "told", "teacher": {"weight": 1}},
    {"name": "told-compiled", "teacher": {"weight": 1}, "optimization": {"compile": True}},
    {"name": "lora", "optimization": {"lora": {"rank": 2, "dropout": 0.1}}},
    {"name": "lora-crashing", "optimization": {"lora": {"rank": 2, "dropout": 0.1}}, "crash": [1, 4]},
    {"name": "lora-whole", "optimization": {"lora": {"rank": 2}}},
    {"name": "private", "noise": 1.0},
    {"name": "private-crashing", "noise": 1.0, "crash": [1, 4]},
    {"name": "private-ascent", **ASCENT, "noise": 0.0},
    {"name": "private-lora", **SMALL_IN_PRIVATE},
    {"name": "private-lora-crashing", **SMALL_IN_PRIVATE, "crash": [1, 4]},
    {"name": "private-lora-whole", "noise": 1.0, "optimization": {"lora": {"rank": 2}}},
    {"name": "cut", "noise": 0.0},
]
# A scale that grows and falls all the time, on processors that no job would be allowed to do it on.
HALF: dict[str, Any] = {"unchecked": True, "scale": 2.0**24, "growth": 2, "optimization": {"arithmetic": "fp16"}}
SCENARIOS += [
    {"name": "refused", "optimization": {"arithmetic": "fp16"}},
    {"name": "half", **HALF},
    {"name": "half-crashing", **HALF, "crash": [1, 2, 4]},
    {"name": "half-crowded", **HALF, "fits": {"0": 16}},
    {"name": "half-nan", **HALF, "nan": [1, 3]},
    {"name": "half-endless", **HALF, "burst": [1, 1000]},
]
COMPILED = {"compile": True, "activationCheckpointing": True}
SCENARIOS += [
    {"name": "compiled", "optimization": COMPILED},
    {"name": "compiled-crashing", "optimization": COMPILED, "crash": [2, 4]},
    {"name": "after-compiled", "after": "1-compiled", "from": 3},
]
# The second rank's memory is the smaller one.
STABLE = {"algorithm": "stable-adamw", "activationCheckpointing": True}
SHARDED = {"sharding": "full"}
PAIR = [
    {"name": "sharded", "optimization": SHARDED},
    {"name": "sharded-crashing", "optimization": SHARDED, "crash": [2, 5]},
    {"name": "compiled", "optimization": COMPILED},
    {"name": "compiled-sharded", "optimization": {**SHARDED, **COMPILED}},
    {"name": "half", **HALF},
    {"name": "half-sharded", **HALF, "optimization": {"arithmetic": "fp16", **SHARDED}},
    {"name": "sharded-stable", "optimization": {**SHARDED, **STABLE}},
    {"name": "stable", "optimization": STABLE},
    {"name": "replicated-after", "after": "2-sharded", "from": 3},
    STEADY,
    {"name": "sharded-after", "optimization": SHARDED, "after": "2-steady", "from": 3},
    {"name": "tokens", "tokens": 200},
    {"name": "ascent", **ASCENT},
    {"name": "crowded", "fits": {"1": 16}},
    {"name": "taught", **TAUGHT},
    {"name": "lora-whole", "optimization": {"lora": {"rank": 2}}},
    {"name": "private", "noise": 1.0},
    {"name": "private-lora-whole", "noise": 1.0, "optimization": {"lora": {"rank": 2}}},
    {"name": "taught-sharded", **TAUGHT, "optimization": SHARDED},
    {"name": "stopping", **STOPPING},
    {"name": "stopping-crashing", **STOPPING, "crash": [7, 31, 37]},
    {"name": "stopping-suspended", **STOPPING, "stop": {"rank": 1, "batches": [8], "evaluations": [4]}},
    {
        "name": "stopping-sharded",
        **STOPPING,
        "optimization": {**STOPPING["optimization"], **SHARDED},
        "crash": [31, 37],
    },
]

# Sums of three numbers depend on their order.
THREE = [STEADY, {"name": "crashing", "crash": [2, 5]}]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the ranks left, by `ranks-rank-scenario`."""
    folder = tmp_path_factory.mktemp("ranks")
    run(folder, {1: SCENARIOS, 2: PAIR, 3: THREE})
    after = [
        {"name": "resized", "after": "2-sharded", "from": 3},
        {"name": "half-after-steady", **HALF, "after": "1-steady", "from": 3},
        # Back to a checkpoint of before the change.
        {"name": "half-after-bad-steps", **HALF, "after": "1-steady", "from": 3, "nan": [3, 6], "every": 100},
        {"name": "steady-after-half", "after": "1-half", "from": 3},
    ]
    run(folder, {1: after})
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def test_profiled_steps_are_in_a_trace_and_change_no_bit(results: dict[str, dict[str, Any]]) -> None:
    """As many as were asked for, with what torch did in them."""
    profiled, steady = results["1-0-profiled"], results["1-0-steady"]
    assert torch.equal(profiled["weights"], steady["weights"])
    with gzip.open(profiled["trace"]) as trace:
        names = {event["name"] for event in json.load(trace)["traceEvents"]}
    assert len({name for name in names if name.startswith("ProfilerStep")}) == 3
    assert "aten::linear" in names
    assert steady["trace"] is None


def run(folder: Path, gangs: dict[int, list[dict[str, Any]]]) -> None:
    """Gangs of as many ranks, each with its scenarios, side by side."""
    started = {world: ranks.start(folder, world, *scenarios) for world, scenarios in gangs.items()}
    for world, processes in started.items():
        for rank, process in enumerate(processes):
            assert process.wait(timeout=240) == 0, ranks.log(folder, world, rank).read_text()


def test_two_ranks_train_on_what_one_does(results: dict[str, dict[str, Any]]) -> None:
    """Same losses and gradients in every step, also in an epoch's last, of which the second rank has no example."""
    one, two, other = results["1-0-steady"], results["2-0-steady"], results["2-1-steady"]
    assert len(one["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert torch.allclose(two["gradients"], one["gradients"], rtol=1e-3, atol=1e-6)
    assert torch.equal(two["gradients"], other["gradients"])
    assert torch.allclose(two["weights"], one["weights"], atol=1e-4)
    assert torch.equal(two["weights"], other["weights"])


@pytest.mark.parametrize("name", ["1-0-steady", "2-0-steady", "2-1-steady", "3-0-steady", "2-0-sharded"])
def test_figures_are_those_of_the_steps(results: dict[str, dict[str, Any]], name: str) -> None:
    """Of each: the norm of its gradient before it is clipped, the padding of its rows on all ranks, the rate of the
    schedule, how long this rank has waited for rows so far, and the most memory it has had.
    """
    result, gang = results[name], name.partition("-")[0]
    told = result["told"]
    assert len(told) == 6
    norms = [float(gradient.norm()) for gradient in result["gradients"]]
    assert max(norms) > 0.5
    assert [figures["gradient_norm"] for figures in told] == pytest.approx(norms, rel=1e-5)
    ranks_places = [results[f"{gang}-{rank}-{result['name']}"]["places"] for rank in range(int(gang))]
    for figures, *shares in zip(told, *ranks_places, strict=True):
        words, places = (sum(each) for each in zip(*shares, strict=True))
        assert figures["padding_share"] == pytest.approx(1 - words / places)
    assert max(figures["padding_share"] for figures in told) > 0.1
    # It falls to zero in a line, from the first step on.
    rates = [1e-3 * (1 - step / 6) for step in range(6)]
    assert [figures["learning_rate"] for figures in told] == pytest.approx(rates)
    waits = [figures["data_wait_seconds"] for figures in told]
    for step, waited in enumerate(waits):
        assert sum(result["waits"][: step + 1]) <= waited + 1e-9
    assert waits == sorted(waits)
    blocked = [figures["checkpoint_blocked_seconds"] for figures in told]
    assert blocked == sorted(blocked)
    assert 0 < blocked[-1] + waits[-1] < result["seconds"]
    before, after = result["memory"]
    # The system's two counts of it are a little apart.
    assert 0.95 * before < told[0]["memory_bytes"] <= told[-1]["memory_bytes"] < 1.05 * after


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_share_of_what_the_devices_can_do_is_that_of_all_ranks(
    results: dict[str, dict[str, Any]], world: int
) -> None:
    """The model's operations on the tokens of a second, over those that as many devices can do; with the first step
    there is no rate. Here a step takes a second, and each device can do a million.
    """
    result = results[f"{world}-0-steady"]
    told, tokens = result["told"], [tokens for tokens, _ in result["seen"]]
    assert "flops_share" not in told[0]
    for step in range(1, 6):
        rate = tokens[step - 1] / step
        expected = result["flops_per_token"] * rate / (world * PEAK)
        assert told[step]["flops_share"] == pytest.approx(expected)
    assert all("flops_share" not in figures for figures in results["1-0-two"]["told"])


def test_mlflow_is_sent_what_is_told(results: dict[str, dict[str, Any]]) -> None:
    """Of the last step, and of each tenth."""
    result = results["1-0-steady"]
    sent = result["tracked"][6]
    assert sent.items() >= result["told"][-1].items()
    assert sent["loss"] == result["losses"][-1]
    assert sent["tokens_per_second"] == pytest.approx(result["seen"][-1][0] / 6)
    assert [step for step, row in results["1-0-ascent"]["tracked"].items() if "loss" in row] == list(range(10, 121, 10))


def test_a_norm_that_is_not_finite_is_not_told(results: dict[str, dict[str, Any]]) -> None:
    """Nor is it a number that was none: the step's other figures are."""
    told = results["1-0-two"]["told"]
    assert ["gradient_norm" in figures for figures in told] == [True, False, False, True, True, True]
    assert all("padding_share" in figures for figures in told)


def test_steps_without_a_finite_gradient_are_left_out_within_a_budget(results: dict[str, dict[str, Any]]) -> None:
    """Two in a row change no weight and are made up for; nothing is saved meanwhile."""
    result = results["1-0-two"]
    assert result["error"] == ""
    assert torch.isfinite(result["weights"]).all()
    assert not torch.isfinite(result["gradients"][1:3]).all(dim=1).any()
    assert result["losses"][1:3] == [None, None]
    assert result["losses"][-1] is not None


def test_a_run_that_stays_non_finite_goes_back_and_passes_over_it(results: dict[str, dict[str, Any]]) -> None:
    """The third such step in a row: the state of before the first, and the batches after them; no step is lost."""
    result = results["1-0-three"]
    assert result["error"] == ""
    assert result["taken"] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert torch.isfinite(result["weights"]).all()
    assert torch.isfinite(torch.tensor(result["losses"][-5:])).all()


def test_a_run_that_may_not_go_back_diverges(results: dict[str, dict[str, Any]]) -> None:
    """The newest checkpoint is from before the first such step."""
    result = results["1-0-hopeless"]
    assert result["error"] == "Diverged"
    assert len(result["gradients"]) == 4
    assert result["checkpoints"] == ["step-00000001"]


def test_going_back_is_of_no_help_forever(results: dict[str, dict[str, Any]]) -> None:
    """After two times it ends."""
    result = results["1-0-endless"]
    assert result["error"] == "Diverged"
    assert max(result["taken"]) == 3 * 3 + 1
    assert result["checkpoints"] == ["step-00000001"]


def test_a_run_whose_loss_rises_goes_back_to_when_it_was_sound(results: dict[str, dict[str, Any]]) -> None:
    """What unlearnt is passed over, and the end is as good as that of a run without it."""
    result = results["1-0-ascent"]
    assert result["error"] == ""
    back = next(number for number in range(1, 99) if result["taken"][number] == result["taken"][number - 1])
    assert 30 + 16 < result["taken"][back] < 70
    assert result["losses"][-1] < min(result["losses"][:30])


def test_batches_without_anything_to_predict_tell_nothing(results: dict[str, dict[str, Any]]) -> None:
    """As masks may have it: their loss of nothing is no low one, from which others would have risen."""
    result = results["1-0-empty"]
    assert result["error"] == ""
    assert result["taken"] == list(range(120))
    assert [number for number, loss in enumerate(result["losses"]) if loss is None] == list(range(20, 40))


def test_a_run_that_went_back_and_was_killed_has_the_same_bits(results: dict[str, dict[str, Any]]) -> None:
    """What is known of its health is in the checkpoints: the same batches are passed over."""
    steady, crashing = results["1-0-ascent"], results["1-0-crashing"]
    assert len(crashing["taken"]) > len(steady["taken"])
    assert torch.equal(crashing["weights"], steady["weights"])


def test_three_ranks_that_were_killed_have_the_same_bits(results: dict[str, dict[str, Any]]) -> None:
    """The order in which their gradients are added up is the same after each start."""
    steady, crashing = results["3-0-steady"], results["3-0-crashing"]
    assert len(crashing["taken"]) > len(steady["taken"])
    assert torch.equal(crashing["weights"], steady["weights"])
    assert torch.allclose(steady["weights"], results["1-0-steady"]["weights"], atol=1e-5)


def test_ranks_go_back_together(results: dict[str, dict[str, Any]]) -> None:
    """To the same step, over the same batches."""
    one, other = results["2-0-ascent"], results["2-1-ascent"]
    assert one["taken"] == other["taken"]
    assert len(one["taken"]) > 120
    assert torch.equal(one["weights"], other["weights"])


def test_products_in_bfloat16_learn_the_same(results: dict[str, dict[str, Any]]) -> None:
    """The weights stay float32, and the losses are nearly the same; where the processor can't, it is refused."""
    result, steady = results["1-0-bf16"], results["1-0-steady"]
    if Arithmetic.BF16 not in offered(torch.device("cpu")):
        assert result["error"] == "ArithmeticUnsupported"
        return
    assert result["weights"].dtype == torch.float32
    assert result["losses"] == pytest.approx(steady["losses"], rel=0.02)
    assert not torch.equal(result["weights"], steady["weights"])


def test_products_in_16_bits_are_refused_where_they_are_slow(results: dict[str, dict[str, Any]]) -> None:
    """Processors have none."""
    assert results["1-0-refused"]["error"] == "ArithmeticUnsupported"


@pytest.mark.parametrize("name", ["1-0-half", "1-0-half-crowded", "2-0-half", "2-0-half-sharded"])
def test_products_in_16_bits_learn_the_same_whatever_overflows(results: dict[str, dict[str, Any]], name: str) -> None:
    """Also in parts, in more chunks, and by two ranks. A batch whose gradient overflows is tried again at a smaller
    scale until it doesn't: each is learnt from.
    """
    half, steady = results[name], results["1-0-steady"]
    assert half["error"] == ""
    finite = torch.isfinite(half["gradients"]).all(dim=1)
    assert not finite.all()
    assert half["weights"].dtype == torch.float32
    assert half["losses"] == pytest.approx(steady["losses"], rel=1e-3)
    assert torch.allclose(half["gradients"][finite], steady["gradients"], rtol=0.05, atol=2e-3)
    assert torch.allclose(half["weights"], steady["weights"], atol=2e-3)
    assert not torch.equal(half["weights"], steady["weights"])


@pytest.mark.parametrize("name", ["half", "half-sharded"])
def test_ranks_have_one_scale(results: dict[str, dict[str, Any]], name: str) -> None:
    """An overflow on one of them is one of all."""
    one, other = results[f"2-0-{name}"], results[f"2-1-{name}"]
    assert len(one["gradients"]) == len(other["gradients"])
    assert torch.equal(one["weights"], other["weights"])


def test_a_scaled_run_that_was_killed_has_the_same_bits(results: dict[str, dict[str, Any]]) -> None:
    """The scale, and since when it is the same, are in the checkpoints: it overflows in the same steps."""
    crashing, steady = results["1-0-half-crashing"], results["1-0-half"]
    assert len(crashing["taken"]) > len(steady["taken"])
    assert torch.equal(crashing["weights"], steady["weights"])
    assert torch.isfinite(crashing["gradients"]).all(1).sum() > torch.isfinite(steady["gradients"]).all(1).sum()


@pytest.mark.parametrize("name", ["half-after-steady", "half-after-bad-steps"])
def test_a_run_that_goes_on_in_16_bits_scales_its_loss(results: dict[str, dict[str, Any]], name: str) -> None:
    """From checkpoints of another arithmetic, as on an older GPU, and when it goes back to one of them: the scale is a
    new run's, too large here.
    """
    result = results[f"1-0-{name}"]
    assert result["error"] == ""
    assert not torch.isfinite(result["gradients"][-4:]).all()
    assert result["scale"] >= 2


def test_a_run_that_goes_on_in_32_bits_scales_nothing(results: dict[str, dict[str, Any]]) -> None:
    """A scale in its checkpoints is another arithmetic's."""
    result = results["1-0-steady-after-half"]
    assert (result["taken"], result["scale"], results["1-0-half"]["scale"] > 1) == ([3, 4, 5], 1, True)
    assert torch.allclose(result["weights"], results["1-0-steady"]["weights"], atol=2e-3)


def test_a_loss_that_is_not_finite_is_not_the_scales_fault(results: dict[str, dict[str, Any]]) -> None:
    """It is tried once, and left out within the budget; the scale stays."""
    result = results["1-0-half-nan"]
    assert result["error"] == ""
    assert result["losses"][1:3] == [None, None]
    finite = torch.isfinite(result["gradients"]).all(1).tolist()
    first = finite.index(True)
    assert finite[first : first + 4] == [True, False, False, True]


def test_a_gradient_that_overflows_at_any_scale_diverges(results: dict[str, dict[str, Any]]) -> None:
    """The scale falls to its floor, once; from there on the steps count as those of any other training."""
    result = results["1-0-half-endless"]
    assert result["error"] == "Diverged"
    assert max(result["taken"]) == 3 * 3 + 1
    # From 2 ** 24 to 2 at most, anew after each of two rollbacks.
    assert len(result["gradients"]) < 3 * (24 + 3) + 24


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("1-0-compiled", "1-0-steady"),
        ("1-0-told-compiled", "1-0-told"),
        ("2-0-compiled", "1-0-steady"),
        ("2-0-compiled-sharded", "1-0-steady"),
    ],
)
def test_compiled_layers_train_as_others(results: dict[str, dict[str, Any]], name: str, other: str) -> None:
    """Whole and in parts, with activations computed again, and with a teacher."""
    compiled, steady = results[name], results[other]
    assert compiled["losses"] == pytest.approx(steady["losses"], rel=1e-5)
    assert torch.allclose(compiled["gradients"], steady["gradients"], rtol=1e-3, atol=1e-6)
    assert torch.allclose(compiled["weights"], steady["weights"], atol=1e-4)


def test_checkpoints_of_compiled_layers_are_those_of_others(results: dict[str, dict[str, Any]]) -> None:
    """A killed run has the same bits, and one that isn't compiled goes on from them."""
    compiled, crashing, after = (results[f"1-0-{name}"] for name in ("compiled", "compiled-crashing", "after-compiled"))
    assert torch.equal(crashing["weights"], compiled["weights"])
    assert len(crashing["taken"]) > len(compiled["taken"])
    assert after["taken"] == [3, 4, 5]
    assert torch.allclose(after["weights"], compiled["weights"], atol=1e-4)


@pytest.mark.parametrize("world", [1, 2])
def test_what_does_not_fit_into_memory_is_cut(results: dict[str, dict[str, Any]], world: int) -> None:
    """A rank runs out of it in the midst of a backward pass, and each batch's gradient stays as it was."""
    cut, whole = results[f"{world}-0-crowded"], results[f"{world}-0-steady"]
    assert cut["error"] == ""
    assert cut["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert torch.allclose(cut["gradients"], whole["gradients"], rtol=1e-3, atol=1e-6)
    tried = results[f"{world}-{world - 1}-crowded"]["sizes"]
    assert max(tried) > 16
    # Nothing that is too large is tried twice.
    assert max(tried[tried.index(max(tried)) + 2 :]) <= 16


def test_all_ranks_keep_to_what_fits_on_one(results: dict[str, dict[str, Any]]) -> None:
    """Here the second's memory, after the step in which it was too small."""
    one, other = results["2-0-crowded"], results["2-1-crowded"]
    assert one["chunk_tokens"] == other["chunk_tokens"] < 32
    assert torch.equal(one["weights"], other["weights"])


def test_a_checkpoint_remembers_what_fits(results: dict[str, dict[str, Any]]) -> None:
    """Whoever goes on tries nothing larger, so that the weights have the same bits."""
    crashing, steady = results["1-0-crowded-crashing"], results["1-0-crowded"]
    assert torch.equal(crashing["weights"], steady["weights"])
    assert len(crashing["taken"]) > len(steady["taken"])
    assert [size for size in crashing["sizes"] if size > 16] == [size for size in steady["sizes"] if size > 16]


def test_a_single_sequence_that_does_not_fit_ends_the_run(results: dict[str, dict[str, Any]]) -> None:
    """There is nothing left to halve."""
    assert results["1-0-full"]["error"] == "SequenceTooLarge"


def test_a_length_in_tokens_is_kept_by_any_number_of_ranks_and_after_any_death(
    results: dict[str, dict[str, Any]],
) -> None:
    """It ends with the step that reaches it, and the schedule's rates, told by the weights, are those of the tokens."""
    one, two, crashing = results["1-0-tokens"], results["2-0-tokens"], results["1-0-tokens-crashing"]
    reached = [tokens for tokens, _ in one["seen"]]
    assert reached[-2] < 200 <= reached[-1]
    assert [rest for _, rest in one["seen"]][-1] == 0
    assert min(rest for _, rest in one["seen"][:-1]) > 0
    assert torch.equal(crashing["weights"], one["weights"])
    assert len(crashing["taken"]) > len(one["taken"])
    assert two["seen"] == one["seen"]
    assert torch.allclose(two["weights"], one["weights"], atol=1e-4)


@pytest.mark.parametrize(("parts", "whole"), [("sharded", "steady"), ("sharded-stable", "stable")])
def test_a_model_in_parts_learns_what_a_whole_one_does(
    results: dict[str, dict[str, Any]], parts: str, whole: str
) -> None:
    """Also with an epoch's last batch, of which the second rank has nothing, and with activations computed again."""
    one, other = results[f"2-0-{parts}"], results[f"2-0-{whole}"]
    assert one["error"] == ""
    assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
    assert torch.allclose(one["gradients"], other["gradients"], rtol=1e-3, atol=1e-6)
    assert torch.allclose(one["weights"], other["weights"], atol=1e-4)
    assert torch.equal(one["weights"], results[f"2-1-{parts}"]["weights"])


def test_a_model_in_parts_that_was_killed_has_the_same_bits(results: dict[str, dict[str, Any]]) -> None:
    """Its checkpoints hold all parts."""
    crashing, steady = results["2-0-sharded-crashing"], results["2-0-sharded"]
    assert len(crashing["taken"]) > len(steady["taken"])
    assert torch.equal(crashing["weights"], steady["weights"])


@pytest.mark.parametrize("name", ["2-0-replicated-after", "2-0-sharded-after", "1-0-resized"])
def test_checkpoints_of_parts_and_of_the_whole_fit_each_other(results: dict[str, dict[str, Any]], name: str) -> None:
    """A run goes on with the other way of sharing, and with another number of ranks."""
    assert results[name]["taken"] == [3, 4, 5]
    assert results[name]["losses"][1:] == pytest.approx(results["2-0-steady"]["losses"][3:], rel=1e-5)
    assert torch.allclose(results[name]["weights"], results["2-0-steady"]["weights"], atol=1e-4)


def test_what_is_learnt_from_a_teacher_is_the_same_for_any_number_of_ranks_and_after_any_death(
    results: dict[str, dict[str, Any]],
) -> None:
    """Soft targets and relations: losses and gradients of two ranks, whole or in parts, and the same bits after two
    deaths; not those of the labels alone.
    """
    one, labels = results["1-0-taught"], results["1-0-steady"]
    for name in ("2-0-taught", "2-1-taught", "2-0-taught-sharded"):
        assert results[name]["losses"] == pytest.approx(one["losses"], rel=1e-5), name
        assert torch.allclose(results[name]["weights"], one["weights"], atol=1e-4), name
    assert torch.equal(results["1-0-taught-crashing"]["weights"], one["weights"])
    assert results["1-0-told"]["losses"][0] != pytest.approx(labels["losses"][0], rel=1e-2)
    assert not torch.allclose(one["gradients"][0], labels["gradients"][0], rtol=1e-2)


def test_private_steps_are_the_same_for_any_number_of_ranks_and_after_any_death(
    results: dict[str, dict[str, Any]],
) -> None:
    """The same examples drawn, the same noise once and not for each rank, the same bits after two deaths; no sum of cut
    gradients, over the four examples that there are on average, is larger than theirs together.
    """
    one, two, cut = results["1-0-private"], results["2-0-private"], results["1-0-cut"]
    assert torch.allclose(two["gradients"], one["gradients"], rtol=1e-3, atol=1e-6)
    assert torch.equal(two["weights"], results["2-1-private"]["weights"])
    assert torch.equal(results["1-0-private-crashing"]["weights"], one["weights"])
    assert all(float(gradient.norm()) <= 0.1 * 9 / 4 for gradient in cut["gradients"])
    noise = one["gradients"][0] - cut["gradients"][0]
    assert float(noise.std()) == pytest.approx(0.1 / 4, rel=0.05)


def test_private_small_matrices_alone_have_noise(results: dict[str, dict[str, Any]]) -> None:
    """As many numbers get it as are trained, whatever the number of ranks, which have the same weights."""
    one, two = results["1-0-private-lora-whole"], results["2-0-private-lora-whole"]
    assert one["gradients"].shape == results["1-0-lora-whole"]["gradients"].shape
    assert torch.allclose(two["gradients"], one["gradients"], rtol=1e-3, atol=1e-6)
    assert torch.equal(two["weights"], results["2-1-private-lora-whole"]["weights"])
    assert float(one["gradients"][0].std()) == pytest.approx(0.1 / 4, rel=0.1)


def test_private_small_matrices_that_were_killed_have_the_same_bits(results: dict[str, dict[str, Any]]) -> None:
    """With dropout, which is drawn anew for each batch, and not for each start."""
    steady, crashing = results["1-0-private-lora"], results["1-0-private-lora-crashing"]
    assert len(crashing["taken"]) > len(steady["taken"])
    assert torch.equal(crashing["weights"], steady["weights"])
    assert not torch.equal(steady["weights"], results["1-0-private-lora-whole"]["weights"])


def test_a_private_run_is_not_rolled_back(results: dict[str, dict[str, Any]]) -> None:
    """What its steps have spent is gone: it ends where another one would go back, having taken no batch twice."""
    result, other = results["1-0-private-ascent"], results["1-0-ascent"]
    assert result["error"] == "Diverged"
    assert result["taken"] == list(range(len(result["taken"])))
    assert 30 + 16 < len(result["taken"]) < len(other["taken"])


@pytest.mark.parametrize("world", [1, 2])
def test_the_best_step_is_taken_and_the_training_ends_once_none_is_better(
    results: dict[str, dict[str, Any]], world: int
) -> None:
    """After three epochs without one; the weights are those that gave the best figure, on all ranks."""
    result = results[f"{world}-0-stopping"]
    best = result["choice"]["step"]
    # Momentum goes on for a little.
    assert 30 <= best < 37
    assert result["choice"]["waited"] == 3
    assert result["taken"] == list(range(best + 9))
    assert result["measured"]["validation_log_loss"] == pytest.approx(result["choice"]["value"], rel=1e-6)
    assert torch.equal(results[f"{world}-{world - 1}-stopping"]["weights"], result["weights"])


@pytest.mark.parametrize("name", ["1-0-stopping", "2-0-stopping", "1-0-choosing"])
def test_a_run_that_was_killed_takes_the_same_step(results: dict[str, dict[str, Any]], name: str) -> None:
    """What was decided, and the best weights, are in its checkpoints, also where it went back to one."""
    steady, crashing = results[name], results[f"{name}-crashing"]
    assert len(crashing["taken"]) > len(steady["taken"])
    assert crashing["choice"] == steady["choice"]
    assert torch.equal(crashing["weights"], steady["weights"])


@pytest.mark.parametrize("world", [1, 2])
def test_a_stop_waits_for_no_evaluation(results: dict[str, dict[str, Any]], world: int) -> None:
    """One that is due or goes on, on whichever rank the signal comes; it is made once, when the run goes on."""
    steady, suspended = (results[f"{world}-0-{name}"] for name in ("stopping", "stopping-suspended"))
    assert [told.split(";")[0] for told in suspended["suspended"]] == [
        f"stopped by a signal after step {step}" for step in (9, 15)
    ]
    assert (steady["broken_off"], suspended["broken_off"]) == (0, 1)
    assert suspended["taken"] == steady["taken"]
    assert suspended["evaluations"] == steady["evaluations"]
    assert suspended["choice"] == steady["choice"]
    assert torch.equal(suspended["weights"], steady["weights"])


def test_the_best_step_of_a_model_in_parts_is_taken(results: dict[str, dict[str, Any]]) -> None:
    """After two deaths, too."""
    whole, parts = results["2-0-stopping"], results["2-0-stopping-sharded"]
    assert parts["choice"]["step"] == whole["choice"]["step"]
    assert torch.allclose(parts["weights"], whole["weights"], atol=1e-4)
    assert parts["measured"]["validation_log_loss"] == pytest.approx(parts["choice"]["value"], rel=1e-6)
    assert torch.equal(parts["weights"], results["2-1-stopping-sharded"]["weights"])


def test_small_matrices_are_the_same_for_any_number_of_ranks_and_after_any_death(
    results: dict[str, dict[str, Any]],
) -> None:
    """Losses and merged weights of two ranks, and the same bits after two deaths; not those of training all weights."""
    one, two = results["1-0-lora-whole"], results["2-0-lora-whole"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert torch.allclose(two["weights"], one["weights"], atol=1e-4)
    assert torch.equal(two["weights"], results["2-1-lora-whole"]["weights"])
    assert torch.equal(results["1-0-lora-crashing"]["weights"], results["1-0-lora"]["weights"])
    assert len(results["1-0-lora-crashing"]["taken"]) > len(results["1-0-lora"]["taken"])
    assert one["gradients"].shape[1] < results["1-0-steady"]["gradients"].shape[1] / 2
    assert one["weights"].shape == results["1-0-steady"]["weights"].shape
