from scratch_vs_pretrain.study.messages import say


def test_messages_stay_out_of_what_is_piped(capsys):
    say("done")
    assert capsys.readouterr() == ("", "svp: done\n")
