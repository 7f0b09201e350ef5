-- The same view while there is no file to read.
create view {view} as
from files.empty_{table};
