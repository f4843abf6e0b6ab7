from scratch_vs_pretrain.data.kinds import BREAKS, KINDS, MENDED, ODD


def test_what_is_mended_says_how_and_nothing_else_does():
    assert {kind.means for kind in KINDS.values()} == {BREAKS, MENDED, ODD}
    for kind in KINDS.values():
        assert bool(kind.fate) == (kind.means == MENDED)
        assert kind.text() == (f"harmless: {kind.fate}" if kind.fate else kind.means)
