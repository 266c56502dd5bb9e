"""Reads a user's YAML file; each fault is reported with file, key and remedy."""

from collections.abc import Iterator
from importlib.resources.abc import Traversable
from string import Template
from typing import Annotated, Any, ClassVar, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from capflow_tasks.errors import UserError


class Keys(BaseModel):
    """A mapping in a file; unknown keys are refused."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_unknown_keys(cls, keys: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Report unknown keys together with the faults of the others."""
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [key for key in keys if key not in known] if isinstance(keys, dict) else []
        if not unknown:
            return validate(keys)
        names = ", ".join(map(repr, unknown))
        fault = ValueError(f"unknown key {names}; remove it or use one of: {', '.join(known)}")
        faults = [InitErrorDetails(type="value_error", input=keys, ctx={"error": fault})]
        try:
            validate(keys)
        except ValidationError as error:
            faults += [
                InitErrorDetails(
                    type=each["type"], loc=each["loc"], input=each["input"], ctx=each.get("ctx", {})
                )
                for each in error.errors()
            ]
        raise ValidationError.from_exception_data(cls.__name__, faults)


Shape = TypeVar("Shape", bound=Keys)
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Loader(yaml.SafeLoader):
    """A SafeLoader that keeps dates as text and refuses duplicate keys."""

    # the base classes' tables, because other libraries change those of SafeLoader
    yaml_implicit_resolvers = yaml.resolver.Resolver.yaml_implicit_resolvers
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        **yaml.constructor.SafeConstructor.yaml_constructors,
        "tag:yaml.org,2002:timestamp": yaml.constructor.SafeConstructor.construct_yaml_str,
    }

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"key {key.value!r} is given twice; keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def read_yaml(entry: Traversable, shape: type[Shape], error_type: type[UserError]) -> Shape:
    """Read a file into `shape`. Raises `error_type` with a line per fault."""
    try:
        return shape.model_validate(yaml.load(entry.read_text(encoding="utf-8"), _Loader))
    except ValidationError as error:
        raise error_type("\n".join(_line(entry, fault) for fault in error.errors())) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise error_type(f"{entry}: line {line}: {error.problem}; fix the YAML there") from None
    # ValueError comes from `!!int one`, RecursionError from many brackets
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise error_type(f"{entry}: not YAML in UTF-8 ({reason}); save it as YAML in UTF-8") from None
    except OSError as error:
        raise error_type(f"{entry}: cannot be read ({error.strerror}); check its permissions") from None


def _line(entry: Traversable, fault: Any) -> str:
    """Describe one fault that pydantic found, in one line."""
    key = ".".join(str(part) for part in fault["loc"] if part != "[key]") or "top level"
    if fault["type"] == "value_error":
        return f"{entry}: {key}: {fault['ctx']['error']}"
    if fault["type"] == "missing":
        return f"{entry}: {key}: missing; add it"
    given = repr(fault["input"])
    expected = "expected a mapping of keys" if fault["type"] == "model_type" else fault["msg"]
    return f"{entry}: {key}: {expected}; change {given if len(given) <= 60 else given[:57] + '...'}"


def placeholder_faults(text: str, known: set[str], needed: set[str]) -> Iterator[str]:
    """Find what is wrong with the placeholders of a prompt."""
    template = Template(text)
    if not template.is_valid():
        yield "a $ stands alone; write $$ for a dollar sign"
        return
    used = set(template.get_identifiers())
    if used - known:
        yield f"unknown placeholder {_listed(used - known)}; use {_listed(known)}"
    if needed - used:
        yield f"lacks {_listed(needed - used)}, which the model would never see; add it"


def _listed(placeholders: set[str]) -> str:
    return ", ".join(f"${word}" for word in sorted(placeholders))
