"""What an answer can be scored by: a name and its file. `metrics: auto` takes every one that suits the references."""

from types import ModuleType

from tunesmith.evaluate.metrics import accuracy, chrf, contains, entity_f1, exact_match, json_fields, json_valid, macro_f1

METRICS: dict[str, ModuleType] = {
    "exact_match": exact_match,
    "json_valid": json_valid,
    "json_fields": json_fields,
    "entity_f1": entity_f1,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "contains": contains,
    "chrf": chrf,
}
