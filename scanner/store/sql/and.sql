
union all by name
from {quoted}
