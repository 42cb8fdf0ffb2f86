"""Every mutant of the rules as they stand has been noticed."""

import sys

import mutate
import pytest

# With JAXNN_ALL=1 another Python comes here, too.
pytestmark = [
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="its syntax trees become another text"),
]


@pytest.fixture(scope="module")
def mutants():
    return mutate.mutants()


@pytest.mark.more
@pytest.mark.parametrize("judge", mutate.JUDGES)
def test_no_rule_has_changed_since_it_was_judged(judge, mutants):
    ledger = mutate.Ledger(mutants)
    waiting = {mutant.of for mutant in mutants if ledger.lacks(judge, mutant)}
    assert not waiting, "run `python scripts/mutate.py`, which judges what has changed, and commit scripts/mutants.json"


@pytest.mark.more
@pytest.mark.parametrize("judge", mutate.JUDGES)
def test_a_function_of_which_other_mutants_are_made_has_to_be_judged_again(judge, mutants):
    left_out = next(mutant for mutant in mutants if mutate.must_notice(judge, mutant))
    others = [mutant for mutant in mutants if mutant is not left_out]
    ledger = mutate.Ledger(others)
    assert {mutant.of for mutant in others if ledger.lacks(judge, mutant)} == {left_out.of}


@pytest.mark.more
def test_whatever_is_excused_exists_and_has_a_reason(mutants):
    assert set(mutate.EQUIVALENT) <= {mutant.key for mutant in mutants}
    assert all({**mutate.EQUIVALENT, **mutate.BEYOND_CHECK}.values())
