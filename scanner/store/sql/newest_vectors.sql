create view vectors as
from files.whole_vectors
union all by name
from not_superseded('files.partly_vectors');
