create view vectors as
with plain as (
    from files.whole_vectors
    union all by name
    from not_superseded('files.partly_vectors')
)

select plain.* replace ({replaced})
from plain
left join files.metric_vector_sources as chosen
    on chosen.scan_id = plain.scan_id and same_matrix(chosen, plain)
left join files.metric_vectors as known
    on known.scan_id = chosen.source and same_matrix(known, plain) and known.k = plain.k;
