-- Columns of metrics of matrices that were scanned with different metrics, each from the newest scan that computed it.
create table files.metric_values as
select
    made.model,
    made.revision,
    rescanned.tensor,
    rescanned.role,
    rescanned.head,
    rescanned.expert,
    {values}
from files.rescanned
join files.metric_sets as made using (scan_id)
semi join files.mixed_metrics using (scan_id)
group by all;

-- For each matrix, the newest scan that computed metrics of vectors.
create table files.metric_vector_sources as
select
    made.model,
    made.revision,
    rescanned.tensor,
    rescanned.role,
    rescanned.head,
    rescanned.expert,
    max_by(made.scan_id, made.finished) as source
from files.rescanned
join files.metric_sets as made using (scan_id)
semi join files.mixed_metrics using (scan_id)
where list_has_any(made.names, {vector_names})
group by all;

create view files.metric_source_names as
select distinct source
from files.metric_vector_sources;
