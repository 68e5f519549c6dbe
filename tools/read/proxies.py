"""Says what is behind the proxy of a machine: other machines, but not itself."""

from collections.abc import Mapping

PROXIES = {"all_proxy", "http_proxy", "https_proxy"}
THIS_MACHINE = "localhost,127.0.0.1"


def direct(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables with which a program reaches this machine without the proxy."""
    others = variables.get("no_proxy") or variables.get("NO_PROXY", "")
    names = others if THIS_MACHINE in others else f"{THIS_MACHINE},{others}"
    # Programs read one name or the other.
    return {"no_proxy": names, "NO_PROXY": names}


def proxied(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables with which a program reaches other machines; none without a proxy."""
    found = {name: value for name, value in variables.items() if name.lower() in PROXIES}
    return found | direct(variables) if found else {}
