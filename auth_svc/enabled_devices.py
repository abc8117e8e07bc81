"""What auth_svc knows of devices, which are asset_svc's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnabledDevice:
    """A device that is not disabled.

    Attributes:
        id: the device's.
        create_us: when it was made, microseconds since the epoch; another one may have its id later.
        parent_id: its gateway, "" for none.
        is_gateway: it speaks for its children.
    """

    id: str
    create_us: int
    parent_id: str = ""
    is_gateway: bool = False
