"""Checks deploy/compose.yaml and deploy/kubernetes: the fields that matter, by name. Where kubeconform is there, it checks
the rest of the Kubernetes files against their schemas."""

import pathlib
import re
import shutil
import subprocess
import sys

import yaml

DEPLOY = pathlib.Path(sys.argv[1])
DOCKERFILE = pathlib.Path(sys.argv[2]).read_text()
# shutdown.timeout
DRAIN = 300
wrong = []


def expect(holds, what):
    if not holds:
        wrong.append(what)


def only(thing, known, where):
    for key in thing:
        expect(key in known, f"{where}: unknown field `{key}`")


def compose():
    file = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    only(file, {"services", "volumes", "secrets"}, "compose.yaml")
    service = file["services"]["runward"]
    only(
        service,
        {"image", "build", "restart", "init", "stop_grace_period", "read_only", "tmpfs", "volumes", "cap_drop",
         "security_opt", "pids_limit", "environment", "secrets"},
        "compose.yaml: services.runward",
    )
    expect(int(service["stop_grace_period"].removesuffix("s")) > DRAIN, "compose.yaml: stop_grace_period is below the drain")
    expect(service["read_only"] is True and service["init"] is False, "compose.yaml: read_only, init")
    volumes = [volume.split(":") for volume in service["volumes"]]
    expect(["state", "/var/lib/runward"] in volumes and "state" in file["volumes"], "compose.yaml: no volume for the state")
    expect("/tmp" in service["tmpfs"], "compose.yaml: no tmpfs")
    for secret in service["secrets"]:
        expect(secret["source"] in file["secrets"], f"compose.yaml: no secret {secret['source']}")


def probe(container, name):
    command = container[name]["exec"]["command"]
    only(container[name], {"exec", "periodSeconds", "timeoutSeconds", "failureThreshold"}, name)
    expect(command[:2] == ["runward", "health"], f"{name}: {command}")
    return command[2:]


def kubernetes(path):
    documents = {document["kind"]: document for document in yaml.safe_load_all(path.read_text())}
    expect(set(documents) == {"Service", "StatefulSet"}, f"{path}: {sorted(documents)}")
    expect(documents["Service"]["apiVersion"] == "v1", "Service: apiVersion")
    only(documents["Service"]["spec"], {"clusterIP", "selector"}, "Service.spec")
    whole = documents["StatefulSet"]
    expect(whole["apiVersion"] == "apps/v1", "StatefulSet: apiVersion")
    spec = whole["spec"]
    only(spec, {"serviceName", "replicas", "selector", "template", "volumeClaimTemplates"}, "StatefulSet.spec")
    expect(spec["serviceName"] == documents["Service"]["metadata"]["name"], "StatefulSet: serviceName")
    expect(spec["replicas"] == 1, "two daemons can't share a state directory")
    labels = spec["template"]["metadata"]["labels"]
    for selector in (spec["selector"]["matchLabels"], documents["Service"]["spec"]["selector"]):
        expect(selector.items() <= labels.items(), "a selector does not match the pod")
    pod = spec["template"]["spec"]
    only(
        pod,
        {"terminationGracePeriodSeconds", "automountServiceAccountToken", "enableServiceLinks", "securityContext",
         "initContainers", "containers", "volumes"},
        "pod",
    )
    expect(pod["terminationGracePeriodSeconds"] > DRAIN, "terminationGracePeriodSeconds is below the drain")
    user = int(re.search(r"^USER (\d+):", DOCKERFILE, re.M)[1])
    context = pod["securityContext"]
    only(context, {"runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile"}, "pod.securityContext")
    expect((context["runAsNonRoot"], context["runAsUser"]) == (True, user), "the pod's user is not the image's")
    (container,) = pod["containers"]
    only(
        container,
        {"name", "image", "args", "env", "securityContext", "resources", "startupProbe", "livenessProbe",
         "readinessProbe", "volumeMounts"},
        "container",
    )
    security = container["securityContext"]
    only(security, {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}, "container.securityContext")
    expect(security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], "container.securityContext")
    expect(security["capabilities"] == {"drop": ["ALL"]}, "container: capabilities")
    expect(probe(container, "startupProbe") == ["--live"], "startupProbe asks for more than life")
    # One that asked for readiness would kill a daemon that drains.
    expect(probe(container, "livenessProbe") == ["--live"], "livenessProbe asks for more than life")
    expect(probe(container, "readinessProbe") == [], "readinessProbe")
    names = {volume["name"] for volume in pod["volumes"]}
    names |= {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    mounts = {}
    for one in pod["initContainers"] + pod["containers"]:
        for mount in one["volumeMounts"]:
            only(mount, {"name", "mountPath", "subPath", "readOnly"}, "volumeMounts")
            expect(mount["name"] in names, f"no volume {mount['name']}")
            mounts[mount["mountPath"]] = mount["name"]
    state = re.search(r"^VOLUME (\S+)", DOCKERFILE, re.M)[1]
    expect(mounts.get(state) == "state" and "/tmp" in mounts, "the state or /tmp is not mounted")


compose()
for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
    kubernetes(path)
    if shutil.which("kubeconform"):
        checked = subprocess.run(["kubeconform", "-strict", "-summary", path], capture_output=True, text=True)
        expect(checked.returncode == 0, checked.stdout)
for text in wrong:
    print(f"        {text}", file=sys.stderr)
sys.exit(bool(wrong))
