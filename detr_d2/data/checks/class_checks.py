"""Whether several datasets, and the model, agree about classes and images."""

from collections.abc import Collection, Mapping, Sequence

from detr_d2.data.checks.findings import Finding
from detr_d2.data.checks.wording import abbreviate, describe_difference


def check_num_classes(
    classes: Mapping[str, Sequence[str] | None], num_classes: int | None, panoptic: Collection[str] = ()
) -> list[Finding]:
    """Whether each dataset, by name, has ``num_classes`` classes. None: unknown. ``panoptic`` ones count stuff too."""
    findings = []
    for name, known in classes.items():
        if known is None or num_classes is None or len(known) == num_classes:
            continue
        noun = "class" if len(known) == 1 else "classes"
        noun = f"{noun} of things and stuff" if name in panoptic else f"thing {noun}"
        message = (
            f"MODEL.DETR.NUM_CLASSES is {num_classes} but dataset {name!r} has {len(known)} {noun} "
            f"({abbreviate(known)}): set MODEL.DETR.NUM_CLASSES {len(known)}. "
            "Do not count a no-object class."
        )
        findings.append(Finding("error", "num-classes", message, 1, name))
    return findings


def check_same_classes(classes: Mapping[str, Sequence[str] | None]) -> list[Finding]:
    """A class index must mean the same in all datasets, here by name."""
    known = [(name, list(names)) for name, names in classes.items() if names is not None]
    findings = []
    for name, names in known[1:]:
        first, expected = known[0]
        if names != expected:
            message = (
                f"Datasets {first!r} and {name!r} have different classes: "
                f"{describe_difference(first, expected, name, names)}. Give them the same categories in the same order."
            )
            findings.append(Finding("error", "classes-differ", message, 1, name))
    return findings


def check_shared_images(
    trained: Mapping[str, Sequence[dict]], evaluated: Mapping[str, Sequence[dict]]
) -> list[Finding]:
    """Whether records of training datasets, by name, have image files of datasets that are only evaluated on."""
    files = {name: {record.get("file_name") for record in records} for name, records in trained.items()}
    findings = []
    for name, records in evaluated.items():
        for first, others in files.items():
            shared = [x["file_name"] for x in records if x.get("file_name") and x["file_name"] in others]
            if shared:
                message = (
                    f"{len(shared)} of {len(records)} images of dataset {name!r} are trained on in dataset {first!r}, "
                    f"e.g. {shared[0]}: AP on them tells nothing about new images."
                )
                findings.append(Finding("warning", "images-shared", message, len(shared), shared[0]))
    return findings
