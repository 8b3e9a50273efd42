"""croissant.json of an archive: what each column of results/scores.parquet is.

Croissant 1.0, https://docs.mlcommons.org/croissant/docs/croissant-spec.html. A path in it is
relative to the file.
"""

import json
from collections.abc import Iterable
from typing import Any

NAME = "croissant.json"
TABLE = "results/scores.parquet"
TEXT, INTEGER, NUMBER = "sc:Text", "sc:Integer", "sc:Float"
COLUMNS = {
    "benchmark": (TEXT, "The benchmark, by its name in the study file."),
    "dose": (INTEGER, "Rows of instruction data that the checkpoint has seen; 0: before SFT."),
    "arm": (TEXT, "The condition, by its name in the study file."),
    "seed": (INTEGER, "The training seed; empty for a model that the study did not train."),
    "checkpoint": (TEXT, "Identity (sha256) of the cell that made the weights."),
    "replicate": (INTEGER, "Which writing of the arm's corpus; only where there are several."),
    "question": (TEXT, "Id of the question in its benchmark."),
    "scenario": (TEXT, "Id of the first question of the same scenario: translations share one."),
    "dimension": (TEXT, "What was graded; `overall` is the answer's score."),
    "epoch": (INTEGER, "Which answer to the question, from 1."),
    "judge": (
        TEXT,
        "The model that graded; `likelihood`, `lm-eval`, `probe` or `program` where none did; "
        "`human` for people.",
    ),
    "score": (NUMBER, "From 0 to 1; empty where there is no grade."),
    "missing": (TEXT, "Why there is no grade; empty where there is one."),
    "response": (TEXT, "Id of the answer within its checkpoint and benchmark."),
    "language": (TEXT, "Language of the question."),
    "length": (NUMBER, "Length of the answer."),
}
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        name: f"cr:{name}"
        for name in (
            *("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty"),
            *("fileObject", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key"),
            *("md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
            *("replace", "samplingRate", "separator", "source", "subField", "transform"),
        )
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
}


def croissant(study: str, columns: Iterable[str], sha256: str, published: str, cite: str) -> str:
    """The text of the file.

    Args:
        study: The study's name.
        columns: Of the table; one that is not in COLUMNS is described by its name alone.
        sha256: Of the table.
        published: When the analysis ended (UTC).
        cite: The paper, as BibTeX.
    """
    fields: list[dict[str, Any]] = []
    for column in columns:
        kind, text = COLUMNS.get(column, (TEXT, column))
        source = {"fileObject": {"@id": TABLE}, "extract": {"column": column}}
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"scores/{column}",
                "name": column,
                "description": text,
                "dataType": kind,
                "source": source,
            }
        )
    table = {
        "@type": "cr:FileObject",
        "@id": TABLE,
        "name": "scores.parquet",
        "contentUrl": TABLE,
        "encodingFormat": "application/x-parquet",
        "sha256": sha256,
    }
    data = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": f"scores-of-{study}",
        "description": f"All scores of the study {study}: a row for each grade of an answer.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "url": "https://arxiv.org/abs/2604.13076",
        "datePublished": published,
        "version": "1.0.0",
        "citeAs": cite,
        "distribution": [table],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "scores",
                "name": "scores",
                "description": "One grade of one answer on one dimension by one judge.",
                "field": fields,
            }
        ],
    }
    return json.dumps(data, indent=1) + "\n"
