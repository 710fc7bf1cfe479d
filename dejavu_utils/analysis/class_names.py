"""Names to show of class folders."""

import json
from pathlib import Path

from dejavu_utils.errors import InputError


def read_class_names(path: str | Path, flag: str) -> dict[str, str]:
    """{class folder: name to show} from a file.

    JSON: {"n01440764": "tench"}, or {"0": ["n01440764", "tench"]}. Else one class per line, of whose synonyms the first
    is shown, as in Kaggle's LOC_synset_mapping.txt: n01440764 tench, Tinca tinca. InputError names the flag and what is
    wrong with the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
        if text and text[0] not in "{[":
            pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
            return {folder: names.split(",")[0].strip() for folder, names in pairs}
        loaded = json.loads(text)
        names = dict(loaded.values() if all(isinstance(v, list) for v in loaded.values()) else loaded)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{flag} {path}: neither a JSON file of class folders and their names nor one of such lines ({error})"
        ) from None
    if not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise InputError(f"{flag} {path}: a class folder or its name is not a text")
    return names
