"""Issuers of tokens that the operator trusts, and what their claims mean here.

They stand in a YAML file (docs/deployment.md, Identity providers); whoever may write it decides who comes in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from auth_svc.opaque_tokens import TENANT_PATTERN
from auth_svc.roles import Role, is_built_in
from meshkit.identity import SYSTEM_TENANT

# Signatures that are made with a private key; with a shared secret whoever verifies could also sign.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip
_LONGEST_SUBJECT = 96
_SUBJECT = re.compile(rf"[^\x00-\x1f\x7f]{{1,{_LONGEST_SUBJECT}}}")
_STRICT = ConfigDict(extra="forbid", frozen=True)

Claims = Mapping[str, object]


class NotMapped(Exception):
    """What a claim says gives nothing here; carries the claim's name."""

    def __init__(self, claim: str) -> None:
        super().__init__(claim)
        self.claim = claim


def _tenant(value: str) -> str:
    if not re.fullmatch(TENANT_PATTERN, value):
        raise ValueError("is no tenant's id")
    if value == SYSTEM_TENANT:
        raise ValueError("is the tenant of the installation's operators, whom no issuer can name")
    return value


Tenant = Annotated[str, AfterValidator(_tenant)]


class TenantMapping(BaseModel):
    """One tenant for all tokens, or one by the value of a claim, which must be a string."""

    model_config = _STRICT

    value: Tenant | None = None
    claim: str = Field("", max_length=256)
    values: dict[str, Tenant] = {}

    @property
    def all(self) -> list[str]:
        """Return the tenants that tokens can get."""
        return [*self.values.values()] if self.value is None else [self.value]

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        _one_way(self.value is not None, self.claim, self.values)
        return self

    def of(self, claims: Claims) -> str:
        """Return the tenant.

        Raises:
            NotMapped: the claim is absent or has another value.
        """
        if self.value is not None:
            return self.value
        claimed = claims.get(self.claim)
        if not isinstance(claimed, str) or claimed not in self.values:
            raise NotMapped(self.claim)
        return self.values[claimed]


class RoleMapping(BaseModel):
    """One role for all tokens, or one by a claim: a string, or a list, where the first of `values` counts."""

    model_config = _STRICT

    value: Role | None = None
    claim: str = Field("", max_length=256)
    values: dict[str, Role] = {}

    @property
    def all(self) -> list[Role]:
        """Return the roles that tokens can get."""
        return [*self.values.values()] if self.value is None else [self.value]

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        _one_way(self.value is not None, self.claim, self.values)
        return self

    def of(self, claims: Claims) -> Role:
        """Return the role.

        Raises:
            NotMapped: the claim is absent or has no value that is mapped.
        """
        if self.value is not None:
            return self.value
        claimed = claims.get(self.claim)
        held = claimed if isinstance(claimed, list) else [claimed]
        for value, role in self.values.items():
            if value in held:
                return role
        raise NotMapped(self.claim)


class SubjectMapping(BaseModel):
    """The claim that names the subject: unique at the issuer and never given to somebody else."""

    model_config = _STRICT

    claim: str = Field("sub", min_length=1, max_length=256)

    def of(self, claims: Claims) -> str:
        """Return the subject.

        Raises:
            NotMapped: the claim is absent, no string, too long or not printable.
        """
        claimed = claims.get(self.claim)
        if not isinstance(claimed, str) or not _SUBJECT.fullmatch(claimed):
            raise NotMapped(self.claim)
        return claimed


def _one_way(has_value: bool, claim: str, values: Mapping[str, object]) -> None:
    if has_value == bool(claim) or bool(claim) != bool(values):
        raise ValueError("needs either `value`, or `claim` and `values`")


class Issuer(BaseModel):
    """One issuer, as the operator wrote it."""

    model_config = _STRICT

    name: str = Field(pattern="^[a-z0-9][a-z0-9-]{0,30}$")
    issuer: str = Field(min_length=1, max_length=1024)
    audience: str = Field(min_length=1, max_length=1024)
    jwks_url: str = ""
    jwks_file: Path | None = None
    algorithms: list[Algorithm] = Field(min_length=1)
    tenant: TenantMapping
    subject: SubjectMapping = SubjectMapping()
    role: RoleMapping

    @model_validator(mode="after")
    def _one_place_of_keys(self) -> Self:
        if bool(self.jwks_url) == (self.jwks_file is not None):
            raise ValueError("needs either `jwks_url` or `jwks_file`")
        if self.jwks_url and urlsplit(self.jwks_url).scheme not in {"https", "http"}:
            raise ValueError("`jwks_url` must begin with https://")
        return self

    @model_validator(mode="after")
    def _roles_of_its_tenants(self) -> Self:
        for tenant, role in product(self.tenant.all, self.role.all):
            if not is_built_in(role, tenant):
                raise ValueError(f"tenant {tenant!r} has no role {role.value!r}")
        return self


class _File(BaseModel):
    model_config = _STRICT

    issuers: list[Issuer]


@dataclass(frozen=True, slots=True)
class IssuersInvalid(Exception):
    """The file of issuers cannot be used; `why` names the entry and what is wrong."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


def read_issuers(path: Path) -> Mapping[str, Issuer]:
    """Return the file's issuers by what their tokens say in `iss`.

    Raises:
        IssuersInvalid: it cannot be read, or is not as it should be.
    """
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        issuers = _File.model_validate(told).issuers
    except OSError as error:
        raise IssuersInvalid(path, f"cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise IssuersInvalid(path, "cannot be read: it is not UTF-8") from error
    except yaml.YAMLError as error:
        raise IssuersInvalid(path, f"is no YAML: {error}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise IssuersInvalid(path, f"{where}: {problem['msg']}") from error
    for seen in [each.name for each in issuers], [each.issuer for each in issuers]:
        twice = next((each for each in seen if seen.count(each) > 1), None)
        if twice is not None:
            raise IssuersInvalid(path, f"{twice!r} stands there twice")
    return {
        each.issuer: each
        if each.jwks_file is None
        else each.model_copy(update={"jwks_file": path.parent / each.jwks_file})
        for each in issuers
    }
