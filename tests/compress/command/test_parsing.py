"""argv -> Args: defaults that other flags decide, and runs that are resumed."""

import dataclasses

import pytest

from kerf import files
from kerf.compress.command.folder import config_of, last
from kerf.compress.command.parsing import continued, parse
from kerf.errors import BadInput

pytestmark = pytest.mark.quick


def test_the_commands_of_the_1xn_authors_parse():
    """Both commands of their README, and the spellings of their parser."""
    common = "--gpus 0 --arch mobilenet_v1 --data_path D --eval_batch_size 256 "
    train = "--job_dir ./experiment/ --pretrained_model P --pr_target 0.5 --N 4 --conv_type BlockL1Conv --rearrange"
    args, _ = parse((common + train).split())
    assert (args.N, args.rearrange, args.data_set, args.num_epochs, args.lr) == (4, True, "imagenet", 180, 0.01)
    assert parse((common + "--conv_type DenseConv --evaluate P").split())[0].pruned_model == "P"
    readme = "--pretrain_model P --lr_type step --lr_decay_freq 20 --lr_decay_step 50 100 --label-smoothing 0.1 --full"
    args, _ = parse(readme.split())
    assert (args.pretrained_model, args.lr_policy, args.lr_adjust, args.lr_decay_step) == ("P", "step", 20, (50, 100))
    parser = "--lr_policy exp --lr_gamma 0.2 --warmup_length 2 --nesterov --optimizer sgd --init kaiming_normal"
    args, notes = parse(parser.split())
    assert (args.lr_policy, args.lr_gamma, args.warmup_length, args.nesterov) == ("exp", 0.2, 2, True)
    assert "--init is accepted, since 1xN's scripts pass it, and changes nothing" in notes


def test_without_data_path_the_digits_are_used_and_said():
    args, notes = parse(["--conv_type", "BlockL1Conv", "--N", "4", "--rearrange"])
    assert args.data_set == "digits"
    assert args.num_epochs < 20
    assert [note for note in notes if "no --data_path" in note and "digits" in note]
    args, notes = parse(["--data_set=synthetic", "--data_path=D"])
    assert (args.data_set, notes) == ("synthetic", ["--data_path is not needed for synthetic and not read"])
    assert parse(["--data_path=D"])[0].data_set == "imagenet"


def test_epochs_after_pruning_are_those_before_it_unless_given():
    assert parse(["--num_epochs=3"])[0].finetune_epochs == 3
    assert parse(["--num_epochs=3", "--finetune_epochs=0"])[0].finetune_epochs == 0
    assert parse([])[0].finetune_epochs == 6


def test_a_saved_config_is_the_run(tmp_path):
    args, _ = parse(["--N=2", "--full", "--lr_decay_step", "1", "2", f"--job_dir={tmp_path}", "--nesterov"])
    files.write_json(config_of(tmp_path), args.as_json())
    assert parse([f"--config={config_of(tmp_path)}"])[0] == args


def test_a_command_is_the_run():
    args, _ = parse(
        ["--N=2", "--skip", "a b", "c*", "--no-residual", "--label-smoothing=0.1", "--method=l1", "--debug"]
    )
    words = args.command().split(" ")
    assert words[:2] == ["python", "imagenet.py"]
    assert "'a b'" in args.command()
    assert "--N=2" in words
    assert "--no-residual" in words
    assert not [word for word in words if word.startswith(("--debug", "--no-debug", "--arch"))]


WRONG = {
    "--min_width is 0: expected 1 or more": ["--min_width=0"],
    "--num_classes is 1: expected 2 or more": ["--num_classes=1"],
    "--label_smoothing is 1.0: expected less than 1": ["--label-smoothing=1"],
    "--distill is 1.5: expected at most 1": ["--distill=1.5"],
    "--flops_target is 0.0: expected a share of the MACs above 0 and below 1": ["--flops_target=0"],
    "--speedup_target is inf: expected a positive number": ["--speedup_target=inf"],
    "--latency_target_ms is -1.0: expected a positive number": ["--latency_target_ms=-1"],
    "--N_choices lets layers differ in what they take": ["--N_choices", "4", "8"],
    "--N_choices 4 4: expected different N": ["--N_choices", "4", "4", "--speedup_target=2"],
    "--pr_target and --speedup_target each say how much to remove": ["--pr_target=0.5", "--speedup_target=2"],
    "--nesterov needs --momentum above 0": ["--nesterov", "--momentum=0"],
    "for 2: torchrun --nproc_per_node=2": ["--gpus", "0", "1"],
    "--test_only needs --pruned_model FILE": ["--test_only"],
    "--pruned_model evaluates, --pretrained_model trains": ["--evaluate=F", "--pretrained_model=G"],
    "argument --N: invalid int value: 'four'; see --help": ["--N=four"],
    "argument --scope: invalid choice: 'all'": ["--scope=all"],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_is_refused(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared as it stands
        parse(WRONG[message])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def stopped(tmp_path):
    """A run with a finished epoch, and its flags."""
    flags = ["--data_set=synthetic", "--N=2", "--lr_decay_step", "3", "4", f"--job_dir={tmp_path / 'job'}"]
    args = parse(flags)[0]
    files.write_json(config_of(args.job_dir), args.as_json())
    files.write(last(args.job_dir), "an epoch")
    return args, flags


def test_a_resumed_run_is_that_run(stopped):
    args, _ = stopped
    folder = args.job_dir
    for place in (folder, last(folder)):
        assert parse([f"--resume={place}"])[0] == dataclasses.replace(args, resume=folder)
    again = parse([f"--resume={folder}", "--N=2", "--lr_decay_step", "3", "4", "--momentum=0.9", "--workers=5"])[0]
    assert again == dataclasses.replace(args, resume=folder, workers=5)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--N=8", "--N 8 is not the 2 of the run in"),
        ("--lr_decay_step 5", "--lr_decay_step 5 is not the 3 4 of the run in"),
        ("--method=l1", "--method l1 was not given to the run in"),
    ],
)
def test_a_resumed_run_keeps_its_settings(stopped, typed, message):
    with pytest.raises(BadInput, match=f"{message} .*: resuming keeps its settings"):
        parse([f"--resume={stopped[0].job_dir}", *typed.split()])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"hidden_size": 768}', "no flag is called 'hidden_size'"),
        ("[]", "holds a list, expected an object"),
    ],
)
def test_a_folder_of_another_program_is_not_resumed(tmp_path, content, message):
    config_of(tmp_path).write_text(content)
    with pytest.raises(BadInput, match=message) as error:
        parse([f"--resume={tmp_path}"])
    assert str(config_of(tmp_path)) in str(error.value)


def test_under_torchrun_the_same_flags_continue_an_unfinished_run(stopped, monkeypatch):
    args, flags = stopped
    assert continued(args, []) == (args, [])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    again, notes = continued(*parse(flags))
    assert again == dataclasses.replace(args, resume=args.job_dir)
    assert notes == [f"continuing the unfinished run in {args.job_dir}"]
    assert continued(*parse([*flags, "--workers=7"]))[0].resume == args.job_dir
    assert continued(*parse([*flags, "--N=4"]))[0].resume is None  # another run, which replaces it
    (args.job_dir / "summary.json").write_text("{}")
    assert continued(*parse(flags))[0].resume is None
