"""HTML pages as the tests read them: tags, examples, pictures."""

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
    """Checks that tags close in order; keeps tags with their attributes, and the text of each example."""

    VOID = {"meta", "img"}

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.examples = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "article":
            group = [given["id"] for name, given in self.tags if name == "section"][-1]
            self.examples.append({"group": group, "text": "", "images": 0})
        if tag == "img" and "article" in self.open:
            self.examples[-1]["images"] += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "article" in self.open:
            self.examples[-1]["text"] += data

    def confidences(self, group, role):
        """As they are written, of each example of the group."""
        texts = [example["text"] for example in self.examples if example["group"] == group]
        pattern = role + r" \(model [AB]\).*?confidence\s*(\S+)"
        return [float(re.search(pattern, text, re.S)[1].replace("−", "-")) for text in texts]


def thumbnails(page):
    for tag, attributes in page.tags:
        if tag == "img":
            kind, data = attributes["src"].split(",", 1)
            assert kind == "data:image/jpeg;base64"
            yield Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
