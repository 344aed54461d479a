"""What the outputs of ONNX files of other origin mean: recognised, said by the user, or refused."""

from __future__ import annotations

import foreign
import numpy as np
import onnxruntime
import pytest
from foreign import CHANNELS, CLASSES, PLACES, SIDE, File, check_answers, classifier, explain, saved
from onnx import TensorProto, helper

import whycam
from whycam.runtime.engines import selftest
from whycam.runtime.errors import ExportError, RequestError, WhyCamError


def with_head(add, outputs, folder, opset=18, **options):
    """A pooled linear network, and what ``add`` makes of its logits.

    Args:
        add: adds the outputs to a file, given the logits' name.
        outputs: their shapes.
        folder: of the file.
        opset: of the file.
        options: ``classes``.
    """
    file = File()
    logits = file.linear(file.pooled(file.features()), **options)
    head = foreign.linear_head(file)
    add(file, logits)
    return saved(file.model(outputs, opset), folder), head


Y = {"y": ["N", CLASSES]}
ONE = {"y": ["N", 1]}


@pytest.mark.parametrize(
    ("opset", "activation", "task"),
    [
        (11, "Softmax", "softmax"),
        (11, "LogSoftmax", "softmax"),
        (13, "LogSoftmax", "softmax"),
        (18, "LogSoftmax", "softmax"),
        (18, "Sigmoid", "sigmoid"),
    ],
)
def test_activation_says_what_outputs_mean(opset, activation, task, tmp_path):
    model, head = classifier(opset, activation)
    file = saved(model, tmp_path)
    made = explain(file, outputs=["raw", "map"])
    assert made.manifest.task == task
    assert not any("logits" in note for note in made.notes)
    check_answers(file, made, head)


def test_softmax_below_opset_13_over_all_axes_from_the_first(tmp_path):
    """Its axis 1 took in all that follow: [N, C, 1, 1] is one distribution."""

    def add(file, pooled):
        kernel, bias = file.weight(CLASSES, CHANNELS, 1, 1), file.weight(CLASSES)
        logits = file.add("Conv", pooled, kernel, bias)
        file.add("Flatten", file.add("Softmax", logits, axis=1), to="y")

    file = File()
    add(file, file.add("GlobalAveragePool", file.features()))
    kernel, bias = (file.weights[name].astype(np.float64) for name in list(file.weights)[-2:])
    path = saved(file.model(Y, 11), tmp_path)
    made = explain(path)
    assert made.manifest.task == "softmax"
    check_answers(path, made, lambda a: a.mean((2, 3)) @ kernel[:, :, 0, 0].T + bias)


def test_softmax_and_then_a_logarithm_is_a_log_softmax(tmp_path):
    file, head = with_head(
        lambda file, z: file.add("Log", file.add("Softmax", z, axis=1), to="y"), Y, tmp_path
    )
    made = explain(file)
    assert made.manifest.task == "softmax"
    check_answers(file, made, head)


def test_bare_logits_are_taken_for_softmax_and_that_is_said(tmp_path):
    file = saved(classifier(activation="")[0], tmp_path)
    made = explain(file)
    (note,) = (note for note in made.notes if "ends without softmax or sigmoid" in note)
    assert "--task sigmoid" in note
    assert "--task none" in note


@pytest.mark.parametrize("task", ["softmax", "sigmoid", "none"])
def test_user_says_what_bare_outputs_mean(task, tmp_path):
    model, head = classifier(activation="")
    file = saved(model, tmp_path)
    made = explain(file, task=task)
    assert made.manifest.task == task
    assert not [note for note in made.notes if "ends without" in note]
    check_answers(file, made, head)


def test_values_after_an_activation_are_explained_as_they_are(tmp_path):
    model, head = classifier(activation="Sigmoid")
    file = saved(model, tmp_path)
    made = explain(file, task="none")
    check_answers(file, made, lambda activations: foreign.sigmoid(head(activations)))


@pytest.mark.parametrize("activation", ["", "Sigmoid"])
def test_one_output_is_a_question_of_yes_or_no(activation, tmp_path):
    file, head = with_head(
        lambda file, z: file.add(activation or "Identity", z, to="y"), ONE, tmp_path, classes=1
    )
    made = explain(file, labels=["cat"], outputs=["raw", "map"])
    assert (made.manifest.task, made.manifest.num_classes) == ("binary", 2)
    assert made.manifest.labels == ("not cat", "cat")
    assert any("binary logit" in note for note in made.notes) == (not activation)
    check_answers(file, made, head)


def test_one_value_is_explained_as_it_is_where_the_user_says_so(tmp_path):
    file, head = with_head(lambda f, z: f.add("Identity", z, to="y"), ONE, tmp_path, classes=1)
    made = explain(file, task="none")
    assert (made.manifest.task, made.manifest.num_classes) == ("none", 1)
    check_answers(file, made, head)


def test_softmax_of_one_number_is_refused(tmp_path):
    file, _ = with_head(
        lambda file, z: file.add("Softmax", z, to="y", axis=1), ONE, tmp_path, classes=1
    )
    with pytest.raises(ExportError, match="Softmax of one number, which is always the same"):
        explain(file)


def test_task_that_contradicts_the_number_of_outputs_is_refused(tmp_path):
    file = saved(classifier(activation="")[0], tmp_path)
    with pytest.raises(ExportError, match="task binary is for one logit; 'y' has 5"):
        explain(file, task="binary")
    single, _ = with_head(lambda f, z: f.add("Identity", z, to="y"), ONE, tmp_path, classes=1)
    with pytest.raises(ExportError, match="'y' is one number: its task is binary"):
        explain(single, task="softmax")


def written_softmax(file, z):
    exponentials = file.add("Exp", z)
    total = file.add("ReduceSum", exponentials, file.constant([1], np.int64), keepdims=1)
    return file.add("Div", exponentials, total, to="y")


def written_sigmoid(file, z):
    below = file.add("Add", file.add("Exp", file.add("Neg", z)), file.constant(1.0))
    return file.add("Reciprocal", below, to="y")


@pytest.mark.parametrize("written", [written_softmax, written_sigmoid])
def test_activation_in_other_operators_is_refused(written, tmp_path):
    """Softmax of probabilities would be wrong without a sign of it."""
    outputs, classes = (Y, CLASSES) if written is written_softmax else (ONE, 1)
    file, head = with_head(written, outputs, tmp_path, classes=classes)
    with pytest.raises(ExportError, match=r"'y' holds probabilities already.*--task none"):
        explain(file)
    made = explain(file, task="none")
    activation = foreign.softmax if written is written_softmax else foreign.sigmoid
    check_answers(file, made, lambda activations: activation(head(activations)))


@pytest.mark.parametrize("kind", ["ArgMax", "TopK"])
def test_class_numbers_are_refused(kind, tmp_path):
    def add(file, z):
        if kind == "ArgMax":
            file.add("ArgMax", z, to="y", axis=1, keepdims=0)
        else:
            k = file.constant([1], np.int64)
            file.nodes.append(helper.make_node("TopK", [z, k], ["scores", "y"], axis=1))

    file = File()
    logits = file.linear(file.pooled(file.features()))
    add(file, logits)
    shape = ["N"] if kind == "ArgMax" else ["N", 1]
    model = file.model({"y": shape}, kinds={"y": TensorProto.INT64})
    with pytest.raises(ExportError, match=rf"'y' holds class numbers \({kind}\).*--head"):
        explain(saved(model, tmp_path))


# --- several outputs ---


def two_heads(folder):
    file = File()
    vector = file.pooled(file.features())
    logits = file.linear(vector, classes=3, to="colour")
    head = foreign.linear_head(file)
    file.add("Softmax", file.linear(vector), to="shape", axis=1)
    other = foreign.linear_head(file)
    path = saved(file.model({"colour": ["N", 3], "shape": ["N", CLASSES]}), folder)
    assert logits == "colour"
    return path, head, other


def test_several_outputs_are_listed_and_one_is_chosen(tmp_path):
    file, colour, shape = two_heads(tmp_path)
    with pytest.raises(ExportError, match=r"'colour' \[N, 3\], 'shape' \[N, 5\].*--head"):
        explain(file)
    with pytest.raises(ExportError, match=r"no output 'size'; there are: 'colour' \[N, 3\], 'sh"):
        explain(file, head="size")
    for output, head, classes in (("colour", colour, 3), ("shape", shape, 5), ("0", colour, 3)):
        made = explain(file, head=output)
        assert made.manifest.num_classes == classes
        assert made.manifest.own_outputs == ("colour", "shape")
        check_answers(file, made, head)


def reordered(file, z):
    order = file.constant([3, 1, 0, 4, 2], np.int64)
    return file.add("Gather", file.add("Softmax", z, axis=1), order, to="y", axis=1)


def without_the_first(file, z):
    bounds = (file.constant([number], np.int64) for number in (1, CLASSES, 1))
    return file.add("Slice", file.add("Softmax", z, axis=1), *bounds, to="y")


def averaged(file, z):
    shared = file.add("Mul", z, file.constant(0.5))
    parts = [file.add("Softmax", scores, axis=1) for scores in (z, shared)]
    return file.add("Mean", *parts, to="y")


def smoothed(file, z):
    kept = file.add("Mul", file.add("Softmax", z, axis=1), file.constant(0.9))
    return file.add("Add", kept, file.constant(0.02), to="y")


def in_percent(file, z):
    return file.add("Mul", file.add("Softmax", z, axis=1), file.constant(100.0), to="y")


def of_two_sigmoids(file, z):
    halves = (file.add("Slice", z, *(file.constant([n], np.int64) for n in (a, b, 1)))
              for a, b in ((0, 2), (2, CLASSES)))  # fmt: skip
    return file.add("Concat", *(file.add("Sigmoid", half) for half in halves), to="y", axis=1)


def complement(file, z):
    return file.add("Sub", file.constant(1.0), file.add("Sigmoid", z), to="y")


@pytest.mark.parametrize(
    "ending",
    [reordered, without_the_first, averaged, smoothed, in_percent, of_two_sigmoids, complement,
     written_sigmoid],
)  # fmt: skip
def test_probabilities_that_anything_follows_are_refused(ending, tmp_path):
    """They would have got a second softmax."""
    count = CLASSES - 1 if ending is without_the_first else CLASSES
    file, _ = with_head(ending, {"y": ["N", count]}, tmp_path)
    with pytest.raises(ExportError, match=r"'y' holds probabilities already.*--task none"):
        explain(file)


def test_probability_of_one_class_is_refused_with_a_task_that_takes_one_number(tmp_path):
    """Of two classes' softmax the second column, as many binary classifiers return it."""

    def second(file, z):
        two = (file.constant([number], np.int64) for number in (0, 2, 1))
        both = file.add("Softmax", file.add("Slice", z, *two), axis=1)
        bounds = (file.constant([number], np.int64) for number in (1, 2, 1))
        return file.add("Slice", both, *bounds, to="y")

    file, _ = with_head(second, {"y": ["N", 1]}, tmp_path)
    with pytest.raises(ExportError, match=r"already.*--task none.*or --task binary if they are"):
        explain(file)


def test_scores_between_zero_and_one_that_no_activation_makes_are_logits(tmp_path):
    def near_one_half(file, z):
        scaled = file.add("Mul", z, file.constant(0.01))
        return file.add("Add", scaled, file.constant(0.5), to="y")

    file, head = with_head(near_one_half, Y, tmp_path)
    made = explain(file)
    assert made.manifest.task == "softmax"
    check_answers(file, made, lambda activations: 0.01 * head(activations) + 0.5)


def test_output_that_holds_no_scores_needs_no_choice(tmp_path):
    file = File()
    features = file.add("Identity", file.features(), to="features")
    file.add("Softmax", file.linear(file.pooled(features)), to="y", axis=1)
    outputs = {"features": ["N", CHANNELS, PLACES, PLACES], "y": ["N", CLASSES]}
    path = saved(file.model(outputs), tmp_path)
    made = explain(path)
    assert made.manifest.own_outputs == ("features", "y")
    check_answers(path, made, foreign.linear_head(file))


def test_logits_and_their_softmax_are_one_answer(tmp_path):
    def add(file, z):
        file.add("Softmax", file.add("Identity", z, to="logits"), to="y", axis=1)

    file, head = with_head(add, {"logits": ["N", CLASSES], **Y}, tmp_path)
    made = explain(file)
    assert made.manifest.task == "softmax"
    assert not any("taken for logits" in note for note in made.notes)
    check_answers(file, made, head)


def test_numbers_at_places_need_a_task(tmp_path):
    file = File()
    features = file.features()
    file.add("Conv", features, file.weight(CLASSES, CHANNELS, 1, 1), to="y")
    path = saved(file.model({"y": ["N", CLASSES, PLACES, PLACES]}), tmp_path)
    with pytest.raises(ExportError, match="has 5 numbers at every place, and nothing says"):
        explain(path)


# --- what the program that feeds the file sees ---


@pytest.mark.parametrize("top", [1, 3])
def test_top_classes_need_no_new_input(top, tmp_path):
    file = saved(classifier()[0], tmp_path)
    made = explain(file, top=top, outputs=["raw", "map"])
    assert foreign.signature(made.path, True, 9) == foreign.signature(file, True, 9)
    image = foreign.images(2, file)
    (before,) = foreign.run_file(file, image)
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    names = [made.manifest.names.get(n, n) for n in ("targets", "gradients", "maps")]
    after, targets, gradients, maps = session.run(["y", *names], {"x": image})
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(targets, np.argsort(-before, 1, kind="stable")[:, :top])
    assert gradients.shape == (2, top, CHANNELS, PLACES, PLACES)
    assert maps.shape == (2, top, SIDE, SIDE)
    # The same classes asked for by number.
    asked = explain(file, outputs=["raw", "map"])
    found = whycam.load(asked.path).engine.run(
        {"image": image, "target": targets}, ["gradients", "maps"]
    )
    np.testing.assert_allclose(gradients, found["gradients"], atol=1e-6)
    np.testing.assert_allclose(maps, found["maps"], atol=1e-4)


def test_more_top_classes_than_there_are_is_refused(tmp_path):
    with pytest.raises(WhyCamError, match="top 6 of 5 classes"):
        explain(saved(classifier()[0], tmp_path), top=6)


def test_saturated_sigmoid_whose_probabilities_tie_keeps_reference_answers_of_one_class(tmp_path):
    def add(file, z):
        # All probabilities are 1, in float64 as well; the logits are ranked.
        rising = file.constant(np.arange(50, 50 + 9 * CLASSES, 9, dtype=np.float32))
        file.add("Sigmoid", file.add("Add", z, rising), to="y")

    file, _ = with_head(add, Y, tmp_path)
    made = explain(file)
    session = onnxruntime.InferenceSession(made.path)
    for reference in made.manifest.references:
        image = selftest.make_input(made.manifest, reference.pattern)
        feeds = {"x": image, "target": np.array([[-1]], np.int64)}
        probabilities, targets = session.run(["probabilities", "targets"], feeds)
        assert (probabilities == 1).all()
        assert targets[0, 0] == reference.target


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ["tft"]}, "TFT maximises a class's probability"),
        ({"methods": ["gradcam", "ablation"]}, "ablation compares probabilities"),
        ({"methods": ["scorecam"]}, "scorecam compares probabilities"),
        ({"score": "prob"}, "score prob needs probabilities"),
    ],
)
def test_what_needs_probabilities_is_refused_for_values_before_any_work(options, message, tmp_path):
    absent = tmp_path / "absent.onnx"  # which would be refused first if it were read
    with pytest.raises(RequestError, match=message):
        explain(absent, task="none", **options)
