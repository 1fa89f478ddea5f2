"""What the schema can't say to schemathesis: the years that a ride may be in, and that arrays are not explained."""

from datetime import datetime
from typing import Any

import schemathesis
from hypothesis import strategies as st

from ride_duration.ride import FIRST_YEAR, LAST_YEAR

# a day off both ends: an offset may bring a time into another year
years = st.datetimes(datetime(FIRST_YEAR, 1, 2), datetime(LAST_YEAR, 12, 30))
schemathesis.openapi.format("date-time", years.map(lambda time: f"{time.isoformat()}Z"))


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    return not (isinstance(case.body, list) and case.query and "explain" in case.query)
