-- The same view if there is no file to read.
create view {quoted} as
from files.empty_{table};
