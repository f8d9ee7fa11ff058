"""Image to video from image files: the conditioning frame, and images that are refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from minimal import SHAPE, TEXT, draw, network
from PIL import Image
from test_sample import SETTINGS
from videos import picture

from datamodules.shards.reader import ShardReader, ShardWriter, open_shards
from datamodules.shards.work import ShardMaker
from experiments.generation import conditioning
from experiments.generation.codec import autoencoder_of
from experiments.generation.conditioning import encoded_images, first_frames_of_clips, read_image
from experiments.generation.sampling import Sampling
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import resolve
from experiments.verbs import sample as verb
from experiments.verbs.sample import check, generated_clips
from lightning_modules.networks.encoders import PatchTransform, WanVAE

pytestmark = pytest.mark.numeric

COUNT = 3
CPU = torch.device("cpu")
SIDES = (8 * SHAPE[2], 8 * SHAPE[3])  # of the tiny world's clips, in pixels


def tiny_vae() -> PatchTransform:
    return PatchTransform([0.0] * SHAPE[1], 1.0, kept=SHAPE[1])


def manifest_of(vae) -> dict:
    if isinstance(vae, PatchTransform):
        stored = {"class": "PatchTransform", "id": vae.id, "kept": vae.channels}
        return {"autoencoder": stored, "normalisation": {"mean": [0.0] * vae.channels, "std": 1.0}}
    stored = {"class": "WanVAE", "id": vae.id, "folder": vae.source, "dtype": "float32"}
    return {"autoencoder": stored, "normalisation": {"mean": vae.mean, "std": vae.std}}


def prompts_of(folder, vae) -> ShardReader:
    """Prompts alone: no clip is there to be given."""
    text, negative = draw(1, COUNT, *TEXT).numpy(), draw(2, *TEXT).numpy()
    about = {"fps": 8, **manifest_of(vae)}
    with ShardWriter(folder, "prompts", about=about, negative=negative) as writer:
        for number in range(COUNT):
            info = {"caption": "a one", "name": f"line-{number + 1}"}
            writer.write(f"key-{number}", {"text": text[number]}, info)
    return open_shards(folder)


@pytest.fixture
def prompts(tmp_path) -> ShardReader:
    return prompts_of(tmp_path / "prompts", tiny_vae())


def pictures_in(folder, *names) -> list[np.ndarray]:
    """Another picture for each name, larger than the clip and of its shape."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [picture(40 * number, 2 * SIDES[1], 2 * SIDES[0]) for number, _ in enumerate(names)]
    for name, image in zip(names, made, strict=True):
        Image.fromarray(image).save(folder / name)
    return made


def sampled(prompts, tmp_path, where) -> ShardReader:
    run = tmp_path / "sample"
    run.mkdir(parents=True, exist_ok=True)
    (tmp_path / "base-00000000").mkdir(exist_ok=True)
    (tmp_path / "base-00000000" / "done.json").write_text("{}")
    needs = f"needs: {{student: base-00000000, pictures: {where}}}"
    (run / "recipe.yaml").write_text(f"recipe: sample\nverb: sample\nseed: 7\n{needs}\n")
    settings = Sampling(**(SETTINGS | {"given": 1}))
    folder = RunFolder(run)
    maker = ShardMaker(generated_clips(network(1), prompts, settings, folder, 7, CPU), folder)
    maker.make_all()
    maker.complete()
    return open_shards(run / "shards")


def test_every_clip_begins_with_its_picture(prompts, tmp_path):
    """Named by key, or by the line of the prompt; prompts alone are enough."""
    images = pictures_in(tmp_path / "in", "key-0.png", "line-2.PNG", "key-2.webp")
    shards = sampled(prompts, tmp_path, tmp_path / "in")
    vae = tiny_vae()
    for sample, image, suffix in zip(shards, images, ("png", "png", "webp"), strict=True):
        gray = np.array(Image.fromarray(image).convert("L").resize(SIDES[::-1], Image.LANCZOS))
        first = vae.encode(torch.from_numpy(gray)[None, None, ..., None])[0, 0]
        close = 1e-6 if suffix == "png" else 0.5  # the other is lossy
        assert (torch.from_numpy(sample["latents"][0]) - first).abs().max() <= close
        assert np.abs(np.diff(sample["latents"], axis=0)).max() > 0, "it goes on from there"
    assert shards.manifest["given"] == 1 and len(shards.manifest["pictures"]) == 64


def test_one_picture_is_for_all_prompts(prompts, tmp_path):
    pictures_in(tmp_path / "in", "any.jpg")
    shards = sampled(prompts, tmp_path, tmp_path / "in" / "any.jpg")
    first, second, third = (sample["latents"] for sample in shards)
    assert (first[0] == second[0]).all() and (first[0] == third[0]).all()
    assert not np.allclose(first[1:], second[1:])


def test_other_pictures_are_not_gone_on_with(prompts, tmp_path):
    names = [f"key-{number}.png" for number in range(COUNT)]
    pictures_in(tmp_path / "in", *names)
    sampled(prompts, tmp_path, tmp_path / "in")
    pictures_in(tmp_path / "in", *names[::-1])
    with pytest.raises(ValueError, match="a set with another pictures lies there; remove"):
        sampled(prompts, tmp_path, tmp_path / "in")


def test_wans_first_latent_frame_is_that_of_the_picture(wan_folder, tmp_path, monkeypatch):
    """Its VAE is causal: frame 0 of a video is encoded as if it were alone."""
    vae, size = WanVAE(wan_folder), [3, 16, 2, 4]
    prompts = prompts_of(tmp_path / "prompts", vae)
    video = np.stack([picture(number, 32, 16) for number in range(9)])
    Image.fromarray(video[0]).save(tmp_path / "first.png")
    asked = []
    monkeypatch.setattr(
        conditioning, "autoencoder_of", lambda *given: asked.append(given) or autoencoder_of(*given)
    )
    given = encoded_images(tmp_path / "first.png", prompts, range(COUNT), size, CPU)
    assert asked == [(prompts.manifest, CPU, torch.float32)]  # also where it would decode in bf16
    frames = given.frames([prompts[0], prompts[1]])
    assert frames.shape == (2, 1, 16, 2, 4) and frames.dtype == torch.float32
    latents = vae.encode(torch.from_numpy(video)[None])
    torch.testing.assert_close(frames[1:], latents[:, :1], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="sample.clip_shape: 8 channels, the autoencoder of .* 16"):
        encoded_images(tmp_path / "first.png", prompts, range(COUNT), [3, 8, 2, 4], CPU)


def test_pictures_are_cut_around_their_middle_and_upright(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 20, 20, 3) == 200).all()
    lying = Image.fromarray(wide[:, 20:])
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned clockwise before it is shown
    lying.save(tmp_path / "lying.png", exif=exif)
    upright = read_image(tmp_path / "lying.png", 40, 20, 1)
    assert upright.shape == (40, 20, 1) and upright[5].min() == 200 and upright[-5].max() == 0


def test_pictures_that_will_not_do_are_named(prompts, tmp_path):
    def refuse(error, message, where):
        with pytest.raises(error, match=message):
            sampled(prompts, tmp_path, where)

    refuse(FileNotFoundError, "gone: no such image, nor a folder of", tmp_path / "gone")
    pictures_in(tmp_path / "some", "key-1.png", "other.png")
    said = r"no image for 2 of 3 prompts; name them key-0 or line-1; key-2 or line-3 \(.png"
    refuse(FileNotFoundError, said, tmp_path / "some")
    cut = tmp_path / "cut.png"
    pictures_in(tmp_path, "cut.png")
    cut.write_bytes(cut.read_bytes()[:-200])
    refuse(ValueError, "cut.png: not a readable image .* give a whole one", cut)
    cut.write_text("no picture")
    refuse(ValueError, "cut.png: not a readable image", cut)
    with pytest.raises(ValueError, match="has latents None; give clips .*, images as"):
        first_frames_of_clips(prompts, 1, SHAPE, CPU)


def test_a_recipe_names_them_and_says_that_they_are_given():
    recipe = resolve("sample", "tiny", {"needs.pictures": {"folder": "my/pictures"}}).recipe
    assert recipe["needs"]["pictures"] == "my/pictures"
    with pytest.raises(ValueError, match="sample.given: 0, but an image .* set it to 1"):
        check(recipe)
    recipe["sample"]["given"] = 1
    check(recipe)


@pytest.mark.parametrize("given", [True, False])
def test_the_autoencoder_that_reads_them_is_counted(tmp_path, monkeypatch, given):
    """Also where latents are kept, so that nothing is decoded."""
    network(seed=3).save_pretrained(tmp_path / "student")
    told = []

    def count(*_, pixels, **__):
        told.append(pixels)
        raise MemoryError

    for name in ("open_shards", "require_usable", "follow_autoencoder"):
        monkeypatch.setattr(verb, name, lambda *_: None)
    monkeypatch.setattr(verb, "before_generation", count)
    recipe = resolve(
        "sample", "tiny", {"sample.save": "latents", "sample.given": int(given)}
    ).recipe
    recipe["needs"] |= {"pictures": "pictures"} if given else {}
    with pytest.raises(MemoryError):
        verb.run(recipe, SimpleNamespace(need=lambda _: tmp_path))
    assert told == [given]


def saved(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


def test_grey_of_16_bits_is_scaled(tmp_path):
    ramp = np.linspace(0, 2**16 - 1, 40 * 20).reshape(20, 40).astype(np.uint16)
    found = read_image(saved(tmp_path / "grey.png", ramp), 20, 40, 3)
    assert np.abs(found.astype(int) - np.round(ramp / 257)[..., None]).max() <= 1


@pytest.mark.parametrize("kind", ["RGBA", "P", "LA"])
def test_what_is_transparent_is_white(tmp_path, kind):
    """Pillow would show the colour that is hidden below."""
    image = Image.new("RGBA", (40, 20), (10, 10, 10, 255))
    image.paste((200, 0, 0, 0), (0, 0, 20, 20))
    image.convert(kind).save(tmp_path / "in.png")
    found = read_image(tmp_path / "in.png", 20, 40, 3)
    assert (found[:, :20] == 255).all() and (found[:, 20:] == 10).all()
    image.putalpha(51)
    image.save(tmp_path / "in.png")
    assert (read_image(tmp_path / "in.png", 20, 40, 3)[:, 20:] == 206).all()  # 0.8 x 255 + 0.2 x 10


@pytest.mark.parametrize(
    ("mode", "suffix", "message"),
    [("CMYK", "jpg", "its colours .CMYK. are not RGB"), ("F", "tiff", "its colours .F. are not")],
)
def test_other_colours_are_refused(tmp_path, mode, suffix, message):
    Image.new(mode, (40, 20)).save(tmp_path / f"in.{suffix}")
    with pytest.raises(ValueError, match=f"in.{suffix}: {message}.*convert it to RGB"):
        read_image(tmp_path / f"in.{suffix}", 20, 40, 3)


def test_grey_of_32_bits_is_refused(tmp_path):
    path = saved(tmp_path / "deep.tiff", np.full((20, 40), 2**20, np.int32))
    with pytest.raises(ValueError, match="deep.tiff: grey values beyond 16 bits"):
        read_image(path, 20, 40, 1)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_an_animation_is_refused(tmp_path, suffix):
    first, second = (Image.new("RGB", (40, 20), colour) for colour in ("red", "blue"))
    first.save(tmp_path / f"in.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=f"in.{suffix}: an animation; give one of its"):
        read_image(tmp_path / f"in.{suffix}", 20, 40, 3)


@pytest.mark.parametrize("names", [("line-1.png", "line-1.jpg"), ("key-0.png", "line-1.png")])
def test_two_pictures_for_one_prompt_are_refused(prompts, tmp_path, names):
    pictures_in(tmp_path / "in", *names, "line-2.png", "line-3.png")
    first, second = sorted(names)
    with pytest.raises(
        ValueError, match=f"(?s)({first}|{second}) and .*({second}|{first}) are for"
    ):
        sampled(prompts, tmp_path, tmp_path / "in")


def test_a_folder_named_as_a_picture_is_none(prompts, tmp_path):
    pictures_in(tmp_path / "in", "line-2.png", "line-3.png")
    (tmp_path / "in" / "line-1.png").mkdir()
    with pytest.raises(FileNotFoundError, match="no image for 1 of 3 prompts; name them key-0 or"):
        sampled(prompts, tmp_path, tmp_path / "in")
