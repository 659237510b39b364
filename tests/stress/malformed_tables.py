"""Tables as spreadsheets, editors, exports and attackers write them; YAML settings."""

import gzip
from collections.abc import Iterator

from good_files import CELLS, MANIFEST, NIH, YAML
from malformed import READS, Malformed, cases, damaged

# A manifest names itself as its slide: the file need only exist.
HEAD, ROW = "path,case_id,patient_id,split,label,annotation,mpp\n", "m.csv,a,p,train,normal,,0.25\n"


def tables() -> Iterator[Malformed]:
    """All of them."""
    for contents in (damaged(MANIFEST.format("m.csv").encode()), bad_csv(), bad_rows()):
        yield from cases("manifest", "m.csv", "CaseError", contents)
    yield from cases("manifest", "m.csv", READS, odd_csv())
    yield from cases("table", "t.csv.gz", "CaseError", bad_gzip())
    yield from cases("table", "u.csv.gz", READS, {"packed": gzip.compress(b"a,b\n1,2\n")})
    yield from cases("triage_manifest", "t.csv", "CaseError", bad_triage())
    yield from cases("nih_table", "n.csv", "CaseError", bad_nih())
    yield from cases(
        "nih_table",
        "o.csv",
        READS,
        {"good": NIH, "quoted": NIH.replace("No Finding", '"No Finding"')},
    )
    yield from cases("image_list", "test.txt", "CaseError", bad_lists())
    yield from cases("cell_list", "c.txt", "CaseError", bad_cells())


def bad_csv() -> dict[str, str | bytes]:
    """No CSV, or one of another kind."""
    return {
        "white space": "\n \n\n",
        "header alone": HEAD,
        "semicolons": (HEAD + ROW).replace(",", ";"),
        "tabs": (HEAD + ROW).replace(",", "\t"),
        "bars": (HEAD + ROW).replace(",", "|"),
        "UTF-16": (HEAD + ROW).encode("utf-16"),
        "UTF-16 without a mark": (HEAD + ROW).encode("utf-16-le"),
        "Latin-1": (HEAD + ROW.replace("a", "\xe4", 1)).encode("latin-1"),
        "a null character": HEAD + ROW.replace("m.csv", "m.csv\0x"),
        "an Excel file": b"PK\x03\x04\x14\0\6\0\x08\0\0\0!\0[Content_Types].xml" + bytes(300),
        "an old Excel file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        "a quote that does not end": HEAD + '"m.csv,a,p,train,normal,,0.25\n' * 3,
        "cells beyond the header": HEAD + ROW.replace("\n", ",x,y\n"),
        "a column twice": "path,path\nm.csv,m.csv\n",
        "a column twice but for spaces": "path, path\nm.csv,m.csv\n",
        "no path": "slide,label\nm.csv,normal\n",
        "path in capitals": "PATH\nm.csv\n",
        "an unknown column": "path,scanner\nm.csv,A\n",
        "an index column": ",path\n0,m.csv\n",
        "a header in quotes as one": '"path,case_id"\n"m.csv,a"\n',
        "JSON": '[{"path": "m.csv"}]',
        "20,000 columns": "path" + ",c" * 20_000 + "\n" + "m.csv\n",
        "columns without rows to fill": "path" + "," * 9000 + "\n" + "x\n" * 500,
        "line ends alone": "\r\n" * 1000,
    }


def bad_rows() -> dict[str, str]:
    """A CSV whose cells cannot be."""
    cells = {
        "an empty path": ",a,p,train,normal,,1",
        "a path that is not there": "x.svs,a,p,train,normal,,1",
        "a path of 5,000 letters": f"{'x' * 5000},a,p,train,normal,,1",
        "a path of line breaks": '"x\ny",a,p,train,normal,,1',
        "a formula as path": "=HYPERLINK(1),a,p,train,normal,,1",
        "an id that leaves the folder": "m.csv,../x,p,train,normal,,1",
        "an id of two dots": "m.csv,..,p,train,normal,,1",
        "an absolute id": "m.csv,/etc/x,p,train,normal,,1",
        "an id of Windows": "m.csv,a\\b,p,train,normal,,1",
        "an id of 300 letters": f"m.csv,{'x' * 300},p,train,normal,,1",
        "an id like a run's file": "m.csv,run.json,p,train,normal,,1",
        "an unknown split": "m.csv,a,p,exam,normal,,1",
        "an unknown label": "m.csv,a,p,train,maybe,,1",
        "a label 2": "m.csv,a,p,train,2,,1",
        "an annotation that is not there": "m.csv,a,p,train,tumor,x.xml,1",
        "an annotation that is a folder": "m.csv,a,p,train,tumor,.,1",
        "mpp of words": "m.csv,a,p,train,normal,,fine",
        "mpp with a comma": 'm.csv,a,p,train,normal,,"0,25"',
        "mpp 0": "m.csv,a,p,train,normal,,0",
        "mpp negative": "m.csv,a,p,train,normal,,-1",
        "mpp NaN": "m.csv,a,p,train,normal,,nan",
        "mpp endless": "m.csv,a,p,train,normal,,inf",
        "the path twice": "m.csv,a,p,train,normal,,1\nm.csv,b,p,train,normal,,1",
        "the path twice by another way": "m.csv,a,p,train,normal,,1\n./m.csv,b,p,train,normal,,1",
    }
    return {name: HEAD + row + "\n" for name, row in cells.items()}


def odd_csv() -> dict[str, str | bytes]:
    """What looks odd, and is a manifest."""
    return {
        "good": HEAD + ROW,
        "path alone": "path\nm.csv\n",
        "a byte-order mark": b"\xef\xbb\xbf" + (HEAD + ROW).encode(),
        "line ends of Windows": (HEAD + ROW).replace("\n", "\r\n"),
        "line ends of old Macs": (HEAD + ROW).replace("\n", "\r"),
        "no line end": (HEAD + ROW).rstrip(),
        "blank lines": HEAD + "\n\n" + ROW + "\n\n",
        "spaces around cells": "path , case_id\n m.csv , a \n",
        "short rows": HEAD + "m.csv\n",
        "all quoted": '"path","case_id"\n"m.csv","a"\n',
        "other scripts": HEAD + "m.csv,切片,p,train,normal,,1\n",
        "NA as an id": "path,case_id\nm.csv,NA\n",
        "columns in another order": "case_id,path\na,m.csv\n",
        "capitals": HEAD + "m.csv,a,p,TRAIN,Normal,,1\n",
    }


def bad_gzip() -> dict[str, bytes]:
    """Tables packed by gzip."""
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 1000, mtime=0)
    return {
        "not packed": b"a,b\n1,2\n",
        "empty": b"",
        "cut": packed[:-20],
        "another sum": packed[:-8] + bytes(8),
        "noise behind the head": packed[:10] + b"\xff" * 40,
        "packed twice": gzip.compress(packed),
        "far larger than packed": gzip.compress(b"a,b\n" + b"1,2\n" * 5_000_000),
        "a ZIP archive": b"PK\x03\x04" + bytes(60),
    }


def bad_triage() -> dict[str, str]:
    """Manifests of a triage."""
    return {
        "no path": "study_id\n1\n",
        "an unknown column": "path,name\na.dcm,x\n",
        "no rows": "path\n",
        "an unknown view": "path,view\na.dcm,OBLIQUE\n",
        "an age of words": "path,age\na.dcm,old\n",
        "an age of minus one": "path,age\na.dcm,-1\n",
        "an age of 1,000": "path,age\na.dcm,1000\n",
        "an age that is no number": "path,age\na.dcm,nan\n",
        "a path twice": "path\na.dcm\na.dcm\n",
    }


def bad_nih() -> dict[str, str | bytes]:
    """NIH's table."""
    return damaged(NIH.encode()) | {
        "a column missing": NIH.replace("View Position", "View"),
        "an unknown finding": NIH.replace("Infiltration|Mass", "Infiltration|Flu"),
        "a finding twice": NIH.replace("Infiltration|Mass", "Mass|Mass"),
        "findings with commas": NIH.replace("Infiltration|Mass", "Infiltration,Mass"),
        "an unknown view": NIH.replace(",PA", ",LL"),
        "an image twice": NIH.replace("2.png", "1.png"),
        "no line end in the header": NIH.replace("\n", " "),
    }


def bad_lists() -> dict[str, str | bytes]:
    """Lists of images."""
    return {
        "empty": "",
        "blank lines": "\n\n \n",
        "an image twice": "1.png\n1.png\n",
        "Latin-1": b"\xe4.png\n",
        "UTF-16": "1.png\n".encode("utf-16"),
    }


def bad_cells() -> dict[str, str | bytes]:
    """Lists of Camelyon16's cells."""
    return {
        "empty": "",
        "another name": "x.jpg\n",
        "another size": CELLS.replace("768_h", "256_h"),
        "a path": "../" + CELLS,
        "negative": CELLS.replace("1536", "-1536"),
        "a cell twice": CELLS + CELLS,
        "Latin-1": b"\xe4\n",
        "a number of 5,000 digits": CELLS.replace("1536", "9" * 5000),
    }


def yamls() -> Iterator[Malformed]:
    """Settings."""
    yield from cases("config", "c.yaml", "ConfigError", bad_yaml())
    yield from cases("config", "d.yaml", READS, odd_yaml())


def bad_yaml() -> dict[str, str | bytes]:
    """No YAML, other settings, or hostile."""
    laughs = "\n".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9 if n else '1'}]" for n in range(9))
    return {
        "a list": "[1, 2]",
        "a text": "tiles",
        "a number": "3",
        "a page": "<!DOCTYPE html><html></html>",
        "zeros": bytes(100),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "Latin-1": "stain: {method: vah\xe4dane}".encode("latin-1"),
        "tabs": "tiles:\n\tmpp: 0.5\n",
        "an open bracket": "tiles: [",
        "an open quote": 'tiles: "',
        "wrong indents": "tiles:\n   mpp: 1\n  size_px: 64\n",
        "a key twice": "tiles: {mpp: 1}\ntiles: {mpp: 2}\n",
        "a key twice inside": "tiles: {mpp: 1, mpp: 2}\n",
        "two documents": "tiles: {mpp: 1}\n---\ntiles: {mpp: 2}\n",
        "an unknown key": "tile: {mpp: 1}\n",
        "an unknown key inside": "tiles: {mmp: 1}\n",
        "a key of a number": "1: 2\n",
        "a key of null": "null: 2\n",
        "a key of a list": "? [a, b]\n: 1\n",
        "a key of a mapping": "? {a: b}\n: 1\n",
        "mpp of words": "tiles: {mpp: fine}\n",
        "mpp 0": "tiles: {mpp: 0}\n",
        "mpp negative": "tiles: {mpp: -1}\n",
        "mpp NaN": "tiles: {mpp: .nan}\n",
        "mpp endless": "tiles: {mpp: .inf}\n",
        "mpp of a list": "tiles: {mpp: [1, 2]}\n",
        "mpp as a date": "tiles: {mpp: 2026-01-01}\n",
        "month 13": "tiles: {mpp: 2026-13-01}\n",
        "a group of null": "tiles: null\n",
        "a group of a number": "tiles: 5\n",
        "a huge size": f"tiles: {{size_px: {10**30}}}\n",
        "a size of 5,000 digits": f"tiles: {{size_px: {'9' * 5000}}}\n",
        "a limit of 0": "limits: {megapixels: 0}\n",
        "a limit below": "limits: {nesting: -1}\n",
        "Python's objects": "tiles: !!python/object/apply:os.system ['true']\n",
        "Python's names": "tiles: !!python/name:os.system\n",
        "an unknown tag": "tiles: !x {mpp: 1}\n",
        "an unknown alias": "tiles: *a\n",
        "an anchor twice": "a: &a 1\nb: &a 2\n",
        "itself": "tiles: &a {mpp: *a}\n",
        "billion laughs": laughs,
        "nested 100 deep": "tiles: " + "[" * 100 + "]" * 100 + "\n",
        "nested 3,000 deep": "tiles: " + "[" * 3000,
        "merged from nothing": "tiles: {<<: 3}\n",
        "an expression": "tiles: {mpp: ${x}}\n",
        "MONAI's expression": "tiles: {mpp: $__import__('os')}\n",
        "larger than settings": "# " + "x" * 300_000,
    }


def odd_yaml() -> dict[str, str | bytes]:
    """What looks odd, and holds settings."""
    return {
        "good": YAML,
        "empty": "",
        "a comment": "# nothing\n",
        "three dashes": "---\ntiles: {mpp: 0.5}\n...\n",
        "a byte-order mark": b"\xef\xbb\xbftiles: {mpp: 0.5}\n",
        "line ends of Windows": YAML.replace("\n", "\r\n"),
        "JSON": '{"tiles": {"mpp": 0.5}}',
        "an alias": "tiles: &a {mpp: 0.5}\n",
        "a number as text": "tiles: {mpp: '0.5'}\n",
        "an empty mapping": "tiles: {}\n",
    }
