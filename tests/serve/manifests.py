"""Holds the manifests of deploy/ against the schemas of Kubernetes, and against the fields that KServe's own package knows.

    python manifests.py kubernetes | kserve

KServe's package and tritonclient cannot be in one process, so each kind of manifest is a run of its own.
"""

import pathlib
import re
import sys

import yaml

deploy = pathlib.Path(__file__).parents[2] / "deploy"


def check_kubernetes():
    import kubernetes_validate

    documents = list(yaml.safe_load_all((deploy / "kubernetes.yaml").read_text()))
    assert [one["kind"] for one in documents] == ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        print("ok ", document["kind"])
    wrong = {**documents[0], "spec": {**documents[0]["spec"], "replica": 2}}
    try:
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError:
        return
    raise AssertionError("a field that does not exist was accepted")


def check_kserve():
    import kserve
    import kubernetes.client

    def model(kind):
        return getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None)

    def check(value, kind, at):
        """A value against the type that the generated models give it."""
        many = re.fullmatch(r"list\[(.*)\]", kind)
        named = re.fullmatch(r"dict\((.*), (.*)\)", kind)
        if many:
            assert isinstance(value, list), f"{at}: expected a list"
            for place, item in enumerate(value):
                check(item, many[1], f"{at}[{place}]")
        elif named:
            for key, item in value.items():
                check(item, named[2], f"{at}.{key}")
        elif model(kind):
            fields = {field: name for name, field in model(kind).attribute_map.items()}
            for key, item in value.items():
                assert key in fields, f"{at}: {kind} has no field {key}"
                check(item, model(kind).openapi_types[fields[key]], f"{at}.{key}")
        else:
            simple = {"str": str, "int": int, "bool": bool, "float": (int, float)}.get(kind, object)
            assert isinstance(value, simple), f"{at}: expected {kind}, found {value!r}"

    kinds = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
    documents = list(yaml.safe_load_all((deploy / "kserve.yaml").read_text()))
    assert [one["kind"] for one in documents] == list(kinds)
    for document in documents:
        check(document, kinds[document["kind"]], document["kind"])
        print("ok ", document["kind"])
    try:
        check({"spec": {"container": []}}, kinds["ServingRuntime"], "ServingRuntime")
    except AssertionError:
        return
    raise AssertionError("a field that does not exist was accepted")


{"kubernetes": check_kubernetes, "kserve": check_kserve}[sys.argv[1]]()
