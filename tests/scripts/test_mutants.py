"""Every one-token mutation of the rules as they stand has been noticed, except of those that are WAITING."""

import sys

import mutate
import pytest

# With JAXNN_ALL=1 another Python comes here, too.
pytestmark = [
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="its syntax trees become another text"),
]


def names_in(files: dict[str, str]) -> set[str]:
    """Return "FILE NAME" of each of the functions named for a file."""
    return {f"{file} {name}" for file, names in files.items() for name in names.split()}


# Functions that `python scripts/mutate.py --judge JUDGE` has still to judge: it takes hours. They have changed since
# they were judged. Judge them, and take them out here.
CHANGED = names_in(
    {
        "layers/_conv2d_cpu.py": "_MOST_GROUPS _MOST_TAPS _added_along _by_groups _by_product _with_more_rows "
        "faster_form input_gradient_by_products meets_many_zeros weight_gradient_by_products",
        "layers/_conv2d_depthwise.py": "_shifted correlate weight_gradient",
    }
)
WAITING = {
    "tests": CHANGED
    | names_in(
        {
            "layers/_conv2d_convolutions.py": "_convolve input_gradient",
            "layers/softmax.py": "_softmax_fwd",
            "losses/cross_entropy.py": "_cross_entropy_bwd",
            "rules/softmax_sums.py": "largest shifted",
        }
    ),
    "check": CHANGED,
}


@pytest.fixture(scope="module")
def mutants():
    return mutate.mutants()


@pytest.mark.more
@pytest.mark.parametrize("judge", mutate.JUDGES)
def test_no_rule_has_changed_since_it_was_judged(judge, mutants):
    ledger = mutate.Ledger(mutants)
    waiting = {mutant.of for mutant in mutants if ledger.lacks(judge, mutant)}
    assert waiting == WAITING[judge], (
        "run `python scripts/mutate.py`, which judges what has changed, and commit scripts/mutants.json"
    )


@pytest.mark.more
@pytest.mark.parametrize("judge", mutate.JUDGES)
def test_a_function_of_which_other_mutants_are_made_has_to_be_judged_again(judge, mutants):
    left_out = next(mutant for mutant in mutants if mutate.must_notice(judge, mutant))
    others = [mutant for mutant in mutants if mutant is not left_out]
    ledger = mutate.Ledger(others)
    assert {mutant.of for mutant in others if ledger.lacks(judge, mutant)} == {left_out.of} | WAITING[judge]


@pytest.mark.more
def test_whatever_is_excused_exists_and_has_a_reason(mutants):
    assert set(mutate.EQUIVALENT) <= {mutant.key for mutant in mutants}
    assert all({**mutate.EQUIVALENT, **mutate.BEYOND_CHECK}.values())
