create view vectors as
with plain as (
    from files.whole_vectors
    union all by name
    from not_superseded('files.partly_vectors')
),

sources as (
    select known.*
    from files.metric_vectors as known
    join files.metric_vector_sources as chosen on chosen.source = known.scan_id and same_matrix(chosen, known)
)

select plain.* replace ({replaced})
from plain
left join sources as known
    on plain.model = known.model and plain.revision is not distinct from known.revision
    and same_matrix(plain, known) and plain.k = known.k;
