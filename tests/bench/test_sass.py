"""Reading machine code: which loop is the one over the classes."""

from bench import sass


def numbered(*codes: str) -> list[tuple[int, str]]:
    return [(16 * place, code) for place, code in enumerate(codes)]


LOADS = ("LDG.E R1, [R2]",) * 3
EXPONENTIALS = ("MUFU.EX2 R1, R1",) * 4


def test_a_loop_that_loads_every_subset_more_than_once_is_not_that_over_the_classes() -> None:
    """Of six modalities with the loss, the loop over samples was taken: it computes twice the exponentials."""
    classes = (*LOADS, *EXPONENTIALS, "BRA 0x0")
    begin = 16 * len(classes)
    samples = (*LOADS, *LOADS, *EXPONENTIALS, *EXPONENTIALS, f"BRA {begin:#x}")
    loop = sass.class_loop(numbered(*classes, *samples), 3, 1)
    assert loop == list(classes)


def test_the_loop_with_class_weights_is_taken_before_that_without() -> None:
    plain = (*LOADS, *EXPONENTIALS, "BRA 0x0")
    weighted = (*LOADS, "LDG.E R1, [R4]", *EXPONENTIALS, f"BRA {16 * len(plain):#x}")
    assert sass.class_loop(numbered(*plain, *weighted), 3, 1) == list(weighted)
