"""attack_gallery.html: the attack's most confident examples to look at, in one file that needs nothing else."""

import base64
import io

import jinja2
import numpy as np

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.attack.boxes import Unusable
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file
from dejavu_utils.imagenet import load_image

NEIGHBORS = 5  # shown under each model
_IMAGE = 160, 12_000  # longest side in pixels, bytes of the JPEG: keeps the page below 3 MB at 12 examples a group
_CROP = 160, 9_000
_NEIGHBOR = 80, 3_000

# What a group shows, and which confidences put its examples in order: `order` maps the target's and the reference's
# confidence to keys, the greatest first, the second among equals (with neighbors that all agree there are many).
_GROUPS = (
    (
        "memorized",
        "Only the target, the model that was trained on the image, names its class from the crop.",
        "the target’s confidence, of equals the least confident reference first",
        lambda target, reference: (target, -reference),
    ),
    (
        "correlated",
        "Both models name the class: the background tells it, no memory is needed.",
        "the smaller of the two models’ confidences, of equals by the larger",
        lambda target, reference: (np.minimum(target, reference), np.maximum(target, reference)),
    ),
    (
        "misrepresented",
        "Only the reference, the model that never saw the image, names its class. Chance does this too: it is what "
        "memorized has to be held against.",
        "the reference’s confidence, of equals the least confident target first",
        lambda target, reference: (reference, -target),
    ),
)


def save_gallery(path, sets, listing, attacked, crops, neighbors=None, boxes_of=None, class_names=None, per_group=12):
    """Writes the HTML page: the `per_group` most confident memorized, correlated and misrepresented examples (top-1).

    sets: {"A", "B"} -> AttackedSet, from results.read_attack. listing: imagenet.ImageListing. attacked: int64 (n,),
    indices of the attacked images of both sets, in any order. crops: int (n, 4) of xmin, ymin, xmax, ymax in pixels, in
    the order of `attacked`. neighbors: {"A", "B"} -> image indices of that model's nearest public images, int64 (n, k),
    nearest first, in the order of `attacked`; None where the guesses are made from logits. boxes_of: image index ->
    its boxes in pixels, or attack.boxes.Unusable; None draws no boxes. class_names: {class folder: name to show};
    folders without one, and all by default, go by the folder's name.

    Images are JPEG thumbnails in data: URIs; the page loads nothing, and its content security policy forbids it. An
    image that cannot be read any more is named in its place. Definitions: memorization.SHARES.
    """
    rows = {int(index): row for row, index in enumerate(attacked)}
    page = _Page(listing, class_names or {}, crops, neighbors, boxes_of)
    groups = []
    for share, meaning, order_in_words, order in _GROUPS:
        chosen, count = _most_confident(sets, mem.SHARES.index(share), order, per_group)
        groups.append(
            {
                "share": share,
                "meaning": meaning,
                "order": order_in_words,
                "count": count,
                "examples": [page.example(sets[name], name, row, rows) for name, row in chosen],
            }
        )
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE)
    html = template.render(
        groups=groups,
        total=sum(len(attacked_set.idxs) for attacked_set in sets.values()),
        per_group=per_group,
        neighbors=neighbors is not None,
        boxes=boxes_of is not None,
    )
    with complete_file(path) as temporary:  # names of folders need not be UTF-8
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")


def _most_confident(sets, share, order, count):
    """([(set, row in that set)] of the most confident examples with this share, how many have it)."""
    candidates = []
    for name, attacked_set in sets.items():
        attack = attacked_set.attack
        shares = mem.share_of(attack.target.right(attack.labels, 1), attack.reference.right(attack.labels, 1))
        found = np.flatnonzero(shares == share)
        first, second = order(attack.target.confidence[found], attack.reference.confidence[found])
        candidates += zip(-first, -second, attacked_set.idxs[found], [name] * len(found), found)
    candidates.sort()
    return [candidate[3:] for candidate in candidates[:count]], len(candidates)


class _Page:
    """Turns examples into what the template shows."""

    def __init__(self, listing, class_names, crops, neighbors, boxes_of):
        self.listing, self.class_names, self.crops = listing, class_names, crops
        self.neighbors, self.boxes_of = neighbors, boxes_of

    def example(self, attacked_set, name, row, rows):
        index, attack = int(attacked_set.idxs[row]), attacked_set.attack
        crop = tuple(int(side) for side in self.crops[rows[index]])
        label = int(attack.labels[row])
        try:
            image = load_image(self.listing.path(index))
        except InputError:
            image = None
        boxes = self.boxes(index)
        other = "B" if name == "A" else "A"
        return {
            "set": name,
            "path": self.listing.paths[index],
            "class": self.name(label),
            "image": image and _data_uri(image, *_IMAGE),
            "crop": image and _data_uri(image.crop(crop), *_CROP),
            "size": image and image.size,
            "rectangles": [("box", _rectangle(box)) for box in boxes or []] + [("crop", _rectangle(crop))],
            "boxes_missing": boxes is None,
            "models": [
                self.model(role, model, predictions, row, label, rows[index])
                for role, model, predictions in (
                    ("target", name, attack.target),
                    ("reference", other, attack.reference),
                )
            ],
        }

    def model(self, role, model, predictions, row, label, attacked_row):
        guess = int(predictions.top[row, 0])
        nearest = [] if self.neighbors is None else self.neighbors[model][attacked_row][:NEIGHBORS]
        return {
            "role": role,
            "model": model,
            "guess": self.name(guess),
            "right": guess == label,
            "confidence": float(predictions.confidence[row]) + 0.0,  # no minus zero
            "neighbors": [self.neighbor(int(index), label) for index in nearest],
        }

    def neighbor(self, index, label):
        try:
            image = _data_uri(load_image(self.listing.path(index)), *_NEIGHBOR)
        except InputError:
            image = None
        found = int(self.listing.labels[index])
        return {
            "path": self.listing.paths[index],
            "image": image,
            "class": self.name(found),
            "match": found == label,
        }

    def name(self, label):
        folder = self.listing.classes[label]
        return self.class_names.get(folder, folder)

    def boxes(self, index):
        """The image's boxes, [] where none are drawn, None if its XML cannot be read."""
        if self.boxes_of is None:
            return []
        try:
            return self.boxes_of(index)
        except (OSError, InputError, Unusable):
            return None


def _rectangle(sides):
    xmin, ymin, xmax, ymax = sides
    return {"x": xmin, "y": ymin, "width": max(0, xmax - xmin), "height": max(0, ymax - ymin)}


def _data_uri(image, longest, most_bytes):
    """The image as a JPEG of at most `longest` pixels a side; of lower quality until it has at most `most_bytes`."""
    image = image.copy()
    image.thumbnail((longest, longest))
    for quality in (82, 65, 45, 25, 10):
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        if data.tell() <= most_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


# Colors: Okabe & Ito's orange and sky blue, told apart by color-blind readers, and by their lines as well.
_TEMPLATE = """{% macro outline(kind, sides) %}
<rect class="under" {{ sides | xmlattr }}/><rect class="{{ kind }}" {{ sides | xmlattr }}/>
{%- endmacro %}
{% set sample = {"x": 3, "y": 3, "width": 20, "height": 12} %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Déjà vu attack: examples</title>
<style>
:root { color-scheme: light dark; --page: #f4f4f2; --card: #ffffff; --text: #1c1c1c; --quiet: #5c5c5c; --line: #d8d8d4;
  --match: #0072b2; --link: #005a8c; }
@media (prefers-color-scheme: dark) { :root { --page: #16171a; --card: #212327; --text: #ececec; --quiet: #a9abb0;
  --line: #3b3e44; --match: #56b4e9; --link: #8fd0f7; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 1rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .2rem 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2rem 0 .2rem; text-transform: capitalize; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .3rem 0; max-width: 75ch; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .6rem 0; }
.quiet { color: var(--quiet); font-size: .85rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; margin: .6rem 0; padding: 0; }
.legend svg { width: 26px; height: 18px; vertical-align: -4px; margin-right: .3rem; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: .9rem;
  margin-top: .7rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; min-width: 0; }
.shown { display: grid; grid-template-columns: 1fr 1fr; gap: .7rem; margin: .6rem 0; align-items: start; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--quiet); font-size: .8rem; }
.picture { position: relative; display: block; }
.picture img { display: block; width: 100%; height: auto; border-radius: 3px; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.seen img { display: block; width: 100%; max-height: 14rem; object-fit: contain; object-position: left top; }
rect { fill: none; vector-effect: non-scaling-stroke; }
.under { stroke: #000000; stroke-width: 4.5; opacity: .75; }
.box { stroke: #ffb000; stroke-width: 2.2; stroke-dasharray: 6 4; }
.crop { stroke: #7fd0ff; stroke-width: 2.2; }
.model { border-top: 1px solid var(--line); padding-top: .4rem; margin-top: .5rem; }
.neighbors { display: grid; grid-template-columns: repeat(5, 1fr); gap: .35rem; list-style: none; margin: .35rem 0 0;
  padding: 0; }
.neighbors li { position: relative; font-size: .75rem; line-height: 1.25; color: var(--quiet); min-width: 0; }
.neighbors .mark { position: absolute; top: 3px; left: 3px; padding: 0 .3em; background: #000000b0; color: #ffffff;
  border-radius: 2px; }
.neighbors img, .neighbors .missing { display: block; width: 100%; aspect-ratio: 1; object-fit: cover;
  border: 3px solid transparent; border-radius: 4px; }
.neighbors .match { color: var(--text); }
.neighbors .match img, .neighbors .match .missing { border-color: var(--match); }
.figure { white-space: nowrap; }
.missing { background: var(--line); color: var(--text); padding: .4rem; font-size: .75rem; font-weight: 400;
  border-radius: 3px; overflow: hidden; }
@media (max-width: 30rem) { .neighbors li { font-size: .66rem; } }
</style>
</head>
<body>
<header>
<h1>Déjà vu attack: examples</h1>
<p>A model sees only the crop of an image. {% if neighbors %}The classes of the public images nearest to it guess what
the image shows; a guess is the more confident, the more the neighbors agree: confidence is minus the entropy (nats) of
their classes, and 0 where all are of one class. The nearest five are shown, however many vote.
{% else %}
The logits of a supervised model guess what the image shows; confidence is the largest logit.
{% endif %}
The target was trained on the image, the reference was not. All guesses are top-1.</p>
<ul class="legend">
{% if boxes %}
<li><svg viewBox="0 0 26 18" aria-hidden="true">{{ outline("box", sample) }}</svg>
orange, dashed: a box around an object, hidden from the models</li>
{% endif %}
<li><svg viewBox="0 0 26 18" aria-hidden="true">{{ outline("crop", sample) }}</svg>
light blue, solid: the crop that both models see</li>
{% if neighbors %}
<li>✓ and a blue frame: a neighbor of the image’s class; ✗: of another class</li>
{% endif %}
</ul>
<nav>
{% for group in groups %}
<a href="#{{ group.share }}">{{ group.share }}: {{ group.count }} of {{ total }}</a>
{% endfor %}
</nav>
</header>
<main>
{% for group in groups %}
<section id="{{ group.share }}">
<h2>{{ group.share }}</h2>
<p>{{ group.meaning }} {{ group.count }} of {{ total }} attacked
images{% if total %} ({{ "%.1f" | format(100 * group.count / total) }} %){% endif %}.</p>
{% if group.examples %}
<p class="quiet">{{ group.examples | length }} shown, the most confident first: by {{ group.order }}.</p>
<div class="examples">
{% for example in group.examples %}
<article>
<h3>{{ loop.index }}. <bdi>{{ example.class }}</bdi></h3>
<p class="quiet">set {{ example.set }}, <bdi>{{ example.path }}</bdi></p>
<div class="shown">
<figure>
{% if example.image %}
<span class="picture"><img src="{{ example.image }}" alt="attacked image of class {{ example.class }}"><svg
 viewBox="0 0 {{ example.size[0] }} {{ example.size[1] }}" preserveAspectRatio="none" aria-hidden="true">
{% for kind, sides in example.rectangles %}
{{ outline(kind, sides) }}
{% endfor %}
</svg></span>
{% else %}
<div class="missing">this image cannot be read any more</div>
{% endif %}
<figcaption>image{% if example.boxes_missing %} (its boxes cannot be read any more){% endif %}</figcaption>
</figure>
<figure class="seen">
{% if example.crop %}
<img src="{{ example.crop }}" alt="the crop of it that the models see">
{% else %}
<div class="missing">no crop: the image cannot be read any more</div>
{% endif %}
<figcaption>crop</figcaption>
</figure>
</div>
{% for model in example.models %}
<div class="model">
<p>{{ model.role | capitalize }} (model {{ model.model }}): <b><bdi>{{ model.guess }}</bdi></b>, {{ "right ✓" if
 model.right else "wrong ✗" }}, <span class="figure">confidence
 {{ ("%.2f" | format(model.confidence)).replace("-", "−") }}</span></p>
{% if model.neighbors %}
<ol class="neighbors">
{% for neighbor in model.neighbors %}
<li{% if neighbor.match %} class="match"{% endif %} title="{{ neighbor.path }}">
{% if neighbor.image %}
<img src="{{ neighbor.image }}" alt="public image of class {{ neighbor.class }}">
{% else %}
<div class="missing">cannot be read any more</div>
{% endif %}
<span class="mark">{{ "✓" if neighbor.match else "✗" }}</span><bdi>{{ neighbor.class }}</bdi></li>
{% endfor %}
</ol>
{% endif %}
</div>
{% endfor %}
</article>
{% endfor %}
</div>
{% else %}
<p class="quiet">No example.</p>
{% endif %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
