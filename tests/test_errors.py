import pytest

from scratch_vs_pretrain.errors import UserError


def test_message_is_what_the_user_reads():
    error = UserError("study.yaml: unknown key iterationz; did you mean iterations?")
    assert str(error) == "study.yaml: unknown key iterationz; did you mean iterations?"


@pytest.mark.parametrize(
    "guard", [ValueError, TypeError, KeyError, OSError, RuntimeError, AssertionError, SystemExit]
)
def test_guards_for_other_errors_let_it_through(guard):
    with pytest.raises(UserError):
        _raise_guarded(guard)


def _raise_guarded(guard):
    try:
        raise UserError("the message")
    except guard:
        return
