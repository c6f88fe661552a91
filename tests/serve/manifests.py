"""Holds the manifests of deploy/ against the schemas of Kubernetes, and against the models of KServe's own package.

    python manifests.py kubernetes | kserve

KServe's package and tritonclient cannot be in one process, so each kind of manifest is a run of its own. Each ends with manifests that are
wrong in one place, all of which have to be refused.
"""

import copy
import inspect
import pathlib
import re
import sys

import yaml

deploy = pathlib.Path(__file__).parents[2] / "deploy"
# The word for what is taken out in `spoil`.
GONE = object()


def read(name, kinds):
    documents = list(yaml.safe_load_all((deploy / name).read_text()))
    found = [one["kind"] for one in documents]
    assert found == kinds, f"{name}: expected {kinds}, found {found}"
    return documents


def spoil(document, path, value):
    """A copy with another value at a path; `GONE` takes out what is there."""
    spoiled = copy.deepcopy(document)
    *way, last = path
    at = spoiled
    for step in way:
        at = at[step]
    if value is GONE:
        del at[last]
    else:
        at[last] = value
    return spoiled


def refuses(check, document, path, value):
    spoiled = spoil(document, path, value)
    try:
        check(spoiled)
    except AssertionError:
        return
    raise SystemExit(f"{document['kind']}: accepted with {'nothing' if value is GONE else repr(value)} at {path}")


def check_kubernetes():
    import kubernetes_validate

    def check(document):
        try:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"{document['kind']}: {error.message}") from error

    documents = read("kubernetes.yaml", ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"])
    # The containers of KServe's runtime are those of a pod.
    runtime = read("kserve.yaml", ["ServingRuntime", "InferenceService"])[0]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": {"containers": runtime["containers"]}}
    for document in [*documents, pod]:
        check(document)
        print("ok ", document["kind"])
    deployment, service, scaler, _ = documents
    container = ("spec", "containers", 0)
    refuses(check, deployment, ("spec", "replica"), 2)
    refuses(check, deployment, ("spec", "selector"), GONE)
    refuses(check, service, ("spec", "ports", 0, "port"), "http")
    refuses(check, scaler, ("spec", "maxReplicas"), GONE)
    refuses(check, pod, (*container, "securityContext", "runAsUser"), "nobody")
    refuses(check, pod, (*container, "readinessProbe", "httpGet", "prot"), 8080)
    refuses(check, pod, (*container, "ports", 0, "containerPort"), GONE)


def check_kserve():
    import kserve
    import kubernetes.client

    # KServe names the container that a model becomes.
    filled_in = ("V1beta1ModelSpec", "name")
    simple = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}

    def check(value, kind, at):
        """Holds a value against the type that the generated models give it; what it is as such a model."""
        if many := re.fullmatch(r"[lL]ist\[(.*)\]", kind):
            assert isinstance(value, list), f"{at}: expected a list, found {value!r}"
            return [check(item, many[1], f"{at}[{place}]") for place, item in enumerate(value)]
        if named := re.fullmatch(r"(?:dict\(|Dict\[)str, (.*)[)\]]", kind):
            assert isinstance(value, dict), f"{at}: expected names and values, found {value!r}"
            return {check(key, "str", at): check(item, named[1], f"{at}.{key}") for key, item in value.items()}
        if kind in simple:
            # In Python, true is an int.
            right = isinstance(value, simple[kind]) and (kind in ("bool", "object") or not isinstance(value, bool))
            assert right, f"{at}: expected {kind}, found {value!r}"
            return value
        model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None)
        assert model, f"{at}: neither package has the type {kind}"
        assert isinstance(value, dict), f"{at}: expected {kind}, found {value!r}"
        names = {field: name for name, field in model.attribute_map.items()}
        unknown = value.keys() - names.keys()
        assert not unknown, f"{at}: {kind} has no {sorted(unknown, key=str)}"
        fields = {names[key]: check(item, model.openapi_types[names[key]], f"{at}.{key}") for key, item in value.items()}
        # What has to be there and is text has a default in these classes, an empty one; all else that has to be there has none.
        defaults = {name: one.default for name, one in inspect.signature(model).parameters.items()}
        missing = [name for name, default in defaults.items() if default == "" and name not in fields and (kind, name) != filled_in]
        assert not missing, f"{at}: {kind} needs {missing}"
        try:
            return model(**fields)
        except ValueError as error:  # something that has to be there is not
            raise AssertionError(f"{at}: {kind}: {error}") from error

    models = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
    versions = {"ServingRuntime": "serving.kserve.io/v1alpha1", "InferenceService": "serving.kserve.io/v1beta1"}

    def check_document(document):
        kind = document["kind"]
        assert document.get("apiVersion") == versions[kind], f"{kind}: expected {versions[kind]}, found {document.get('apiVersion')}"
        return check(document, models[kind], kind)

    documents = read("kserve.yaml", list(models))
    runtime, service = map(check_document, documents)
    # The service finds the runtime, its format and its protocol.
    asked = service.spec.predictor.model
    assert asked.runtime == runtime.metadata.name, f"expected the runtime {runtime.metadata.name}, found {asked.runtime}"
    assert asked.model_format.name in [one.name for one in runtime.spec.supported_model_formats]
    assert asked.protocol_version in runtime.spec.protocol_versions
    for document in documents:
        print("ok ", document["kind"])

    runtime, service = documents
    container, model = ("spec", "containers", 0), ("spec", "predictor", "model")
    for document, path, value in [
        (runtime, ("apiVersion",), "serving.kserve.io/v1beta1"),
        (runtime, ("spec", "container"), []),
        (runtime, ("spec", "containers"), GONE),
        (runtime, ("spec", "supportedModelFormats", 0, "autoselect"), True),
        (runtime, ("spec", "supportedModelFormats", 0, "autoSelect"), "yes"),
        (runtime, ("spec", "supportedModelFormats", 0, "name"), GONE),
        (runtime, ("spec", "protocolVersions"), "v2"),
        (runtime, ("spec", "annotations", "prometheus.kserve.io/port"), 8002),
        (runtime, (*container, "name"), GONE),
        (runtime, (*container, "args", 2), 8080),
        (runtime, (*container, "ports", 0, "containerPort"), True),
        (runtime, (*container, "readinessProbe", "httpGet", "port"), GONE),
        (runtime, (*container, "securityContext", "capabilities", "dropped"), ["ALL"]),
        (service, ("spec", "predictor"), GONE),
        (service, ("spec", "predictor", "minReplicas"), "1"),
        (service, (*model, "storageURI"), "pvc://a/b"),
        (service, (*model, "modelFormat"), GONE),
        (service, (*model, "modelFormat", "name"), GONE),
        (service, (*model, "modelFormat"), "shadernet"),
    ]:
        refuses(check_document, document, path, value)


{"kubernetes": check_kubernetes, "kserve": check_kserve}[sys.argv[1]]()
