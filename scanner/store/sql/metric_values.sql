-- Columns of metrics of matrices that were scanned with different metrics, each from the newest scan that computed it with the same
-- estimate of sigma. `metrics_failure` is that of the newest of them.
create table files.metric_values as
select
    made.model,
    made.revision,
    rescanned.sigma_kind,
    rescanned.tensor,
    rescanned.role,
    rescanned.head,
    rescanned.expert,
    {values}
from files.rescanned
join files.metric_sets as made using (scan_id)
semi join files.mixed_metrics using (scan_id)
group by all;

-- For each matrix of each of these scans, the newest scan that computed metrics of vectors with the same estimate of sigma.
create table files.metric_vector_sources as
select
    asked.scan_id,
    asked.tensor,
    asked.role,
    asked.head,
    asked.expert,
    max_by(made.scan_id, made.finished) as source
from files.rescanned as asked
semi join files.mixed_metrics as mixed on mixed.scan_id = asked.scan_id
join files.rescanned as other
    on other.model = asked.model and other.revision is not distinct from asked.revision
    and other.sigma_kind = asked.sigma_kind and same_matrix(other, asked)
join files.metric_sets as made on made.scan_id = other.scan_id
where list_has_any(made.names, {vector_names})
group by all;

create view files.metric_source_names as
select distinct source
from files.metric_vector_sources;
