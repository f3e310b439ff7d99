"""The training program with tiny nets: it learns, resumes bit for bit, and writes a folder that diffusers opens."""

import copy
import json
from pathlib import Path

import pytest
import torch

from darkroom.demo import autoencoder, nets, noise, sd35, train, xl
from darkroom.demo.folder import save_folder, size_of
from darkroom.demo.vocabulary import LENGTH, learn_merges, make_tokenizer

ROWS = {64: 4, 128: 2}


@pytest.fixture(scope="module", params=list(train.KINDS))
def tiny(request):
    torch.manual_seed(0)
    return train.KINDS[request.param].make(nets.TINY, make_tokenizer())


def make_trainer(tiny, folder, steps=12, **options):
    folder.mkdir(exist_ok=True)
    plan = train.Plan(steps=steps, warm_up=2, reuse=2, window=4, rows=ROWS, **options)
    return train.Trainer(copy.deepcopy(tiny), plan, folder)


def test_vocabulary_is_the_same_every_time_and_knows_each_word():
    first, second = make_tokenizer(), make_tokenizer()
    assert first.get_vocab() == second.get_vocab()
    assert first.convert_ids_to_tokens(first("A Puppy dog ").input_ids)[1:-1] == ["a</w>", "puppy</w>", "dog</w>"]
    assert len(first("unicorn", padding="max_length").input_ids) == 77


def test_merges_go_by_count_then_alphabet():
    assert learn_merges(["ab", "ab", "cb"]) == [("a", "b</w>"), ("c", "b</w>")]


def test_rate_warms_up_stays_and_cools_down():
    plan = train.Plan(steps=100, rate=1.0, warm_up=10, cool_down=0.4)
    assert plan.rate_at(0) == 0.1
    assert plan.rate_at(30) == 1.0
    assert plan.rate_at(80) == pytest.approx(0.5)
    assert plan.rate_at(100) == 0.01


def test_resumed_is_unbroken_bit_for_bit(tiny, tmp_path):
    unbroken, broken = make_trainer(tiny, tmp_path / "a"), make_trainer(tiny, tmp_path / "b")
    for _ in range(8):
        unbroken.advance()
    for _ in range(4):
        broken.advance()
    broken.save()
    resumed = make_trainer(tiny, tmp_path / "b")
    assert resumed.load()
    for _ in range(4):
        resumed.advance()
    assert resumed.step == unbroken.step == 8
    for mine, theirs in ((resumed.weights, unbroken.weights), (resumed.average, unbroken.average)):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_loss_falls(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, steps=60, rate=3e-3)
    losses = [trainer.advance() for _ in range(60)]
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])


def test_it_learns_under_guidance_too(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, steps=60, rate=3e-3, guidance=2.0)
    losses = [trainer.advance() for _ in range(60)]
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])
    batch, other = trainer._batch(), make_trainer(tiny, tmp_path / "other").nets
    alone, guided = (other.loss(batch, torch.Generator().manual_seed(5), guidance).item() for guidance in (1.0, 2.0))
    assert alone != guided


def test_guidance_takes_answers_with_a_caption_beyond_the_blind_ones():
    found, blind = torch.tensor([3.0, 3.0]).view(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert noise.guide(found, blind, torch.tensor([True, False]), 2.0).flatten().tolist() == [5.0, 3.0]


def test_small_pictures_come_first_and_large_ones_last(tiny, tmp_path):
    plan = train.Plan(steps=100)
    assert [plan.stage_at(step) for step in (0, 39, 40, 69, 70, 99)] == [
        ("small", 0), ("small", 0), ("all", 40), ("all", 40), ("large", 70), ("large", 70),
    ]  # fmt: skip
    assert train.Plan(small_first=0.0).stage_at(0) == ("all", 0)
    trainer = make_trainer(tiny, tmp_path, steps=10, small_first=1.0, large_last=1.0)
    assert set(trainer.pools["small"].shares) == {64, 128}
    trainer.advance()
    assert list((tmp_path / "pool-small").glob("*.pt"))
    assert not list((tmp_path / "pool-all").glob("*.pt"))


def test_weights_of_snr_are_never_zero():
    weights = xl.weigh(xl.ALPHAS)
    assert weights.min() > 0
    assert weights[999] > 1


def test_captions_mislead_only_where_the_picture_is_all_but_done():
    captions = [str(i) for i in range(1000)]
    told = noise.mislead(captions, torch.arange(1000) < 200, torch.Generator().manual_seed(1))
    wrong = [i for i, caption in enumerate(told) if caption != captions[i]]
    assert max(wrong) < 200
    assert 80 < len(wrong) < 120
    assert all(told[i] == captions[i - 1] for i in wrong)


def test_one_token_stands_for_all_that_are_alike():
    torch.manual_seed(0)
    net = sd35.make_transformer(nets.TINY)
    x, pooled, t = torch.randn(2, 4, 8, 16), torch.randn(2, 32), torch.tensor([100.0, 900.0])
    hidden, zeros = torch.randn(2, 77, 32), torch.zeros(2, sd35.T5_TOKENS, 32)
    whole = net(x, torch.cat([hidden, zeros], 1), pooled, t).sample
    with sd35.collapsed(net, torch.cat([torch.ones(77), torch.tensor([sd35.T5_TOKENS])])):
        short = net(x, torch.cat([hidden, zeros[:, :1]], 1), pooled, t).sample
    assert torch.allclose(whole, short, atol=1e-5)
    assert torch.equal(whole, net(x, torch.cat([hidden, zeros], 1), pooled, t).sample)


def test_chosen_tokens_stand_for_all_of_the_prompt():
    chosen, counts = sd35.choose_tokens(12, torch.Generator().manual_seed(1))
    assert chosen[:12].tolist() == list(range(12))
    assert counts[:12].tolist() == [1.0] * 12
    assert counts.sum() == LENGTH
    assert chosen.diff().min() > 0
    assert chosen.max() < LENGTH
    assert len(sd35.choose_tokens(LENGTH, torch.Generator())[0]) == LENGTH


def test_text_encoders_come_from_the_other_family(tmp_path):
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    donor = xl.XL.make(nets.FULL, tokenizer)
    save_folder(donor, tmp_path)
    taker = sd35.SD35.make(nets.FULL, tokenizer)
    taker.take_text(tmp_path)
    for ours, theirs in ((taker.text, donor.text), (taker.text_2, donor.text_2)):
        weights, donated = ({name.removeprefix(nets.PREFIX): w for name, w in encoder.state_dict().items()} for encoder in (ours, theirs))
        assert weights.keys() - donated.keys() <= {nets.PROJECTION}
        assert all(torch.allclose(weights[name], weight, atol=1e-2) for name, weight in donated.items())


def test_sigmas_lean_to_noise_in_large_pictures():
    small, large = (sd35.draw_sigmas(2000, side, torch.Generator().manual_seed(1)) for side in (128, 512))
    assert 0 < small.min() < small.max() < 1
    assert 0.45 < small.mean() < 0.55
    assert large.mean() > 0.65


def test_run_writes_state_log_checkpoint(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, steps=2)
    train.run(trainer, tmp_path / "out", every=1, sheet_every=0)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    assert (tmp_path / "state.pt").exists()
    again = type(tiny).load(tmp_path / "out")
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(again.trained(), trainer.average, strict=True))


def test_the_outcome_may_lean_back_to_the_start(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, steps=2, start_part=0.25)
    start = [p.detach().clone() for p in trainer.weights]
    train.run(trainer, tmp_path / "out", every=1, sheet_every=0)
    trained = torch.load(tmp_path / "state.pt")["average"]
    for kept, begun, ended in zip(trainer.average, start, trained, strict=True):
        torch.testing.assert_close(kept - ended, 0.25 * (begun - ended), atol=1e-6, rtol=0)
    assert max((kept - ended).abs().max().item() for kept, ended in zip(trainer.average, trained, strict=True)) > 1e-5


def test_folder_says_nothing_of_this_machine(tiny, tmp_path):
    save_folder(tiny, tmp_path)
    texts = [file.read_text() for file in tmp_path.rglob("*.json")]
    assert texts
    assert not any(str(Path.home()) in text or str(tmp_path) in text for text in texts)
    assert size_of(tmp_path) > 0


def test_new_vocabulary_keeps_what_both_know(tiny):
    changed = copy.deepcopy(tiny)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zebra"])
    old = tiny.text.get_input_embeddings().weight[tiny.tokenizer.get_vocab()["cat</w>"]]
    nets.retokenize(changed, tokenizer)
    assert torch.equal(changed.text.get_input_embeddings().weight[tokenizer.get_vocab()["cat</w>"]], old)
    assert changed.text.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("train_part", [autoencoder.train_autoencoder, autoencoder.train_decoder])
def test_autoencoder_resumes_bit_for_bit(tiny, tmp_path, monkeypatch, train_part):
    monkeypatch.setattr(autoencoder, "CUTS", ((64, 48, 2), (64, 64, 1)))
    whole, half = copy.deepcopy(tiny.vae), copy.deepcopy(tiny.vae)
    for name in ("whole", "half"):
        (tmp_path / name).mkdir()
    train_part(whole, tmp_path / "whole", 4, seed=3)
    interrupt(train_part, half, tmp_path / "half", stop_after=2)
    fresh = copy.deepcopy(tiny.vae)
    train_part(fresh, tmp_path / "half", 4, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))


def interrupt(train_part, vae, folder, stop_after):
    """Run `train_part` until its first state file, as a kill would leave it."""
    drawn = 0

    def stop(rng):
        nonlocal drawn
        drawn += 1
        if drawn > stop_after:
            raise KeyboardInterrupt
        return draw(rng)

    draw, every = autoencoder.draw_pictures, autoencoder.STATE_EVERY
    autoencoder.draw_pictures, autoencoder.STATE_EVERY = stop, stop_after
    try:
        with pytest.raises(KeyboardInterrupt):
            train_part(vae, folder, 4, seed=3)
    finally:
        autoencoder.draw_pictures, autoencoder.STATE_EVERY = draw, every
