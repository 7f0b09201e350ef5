create view matrices as
with plain as (
    from files.whole_matrices
    union all by name
    from not_superseded('files.partly_matrices')
)

select plain.* replace ({replaced})
from plain
left join files.metric_values as known
    on plain.model = known.model and plain.revision is not distinct from known.revision
    and plain.sigma_kind = known.sigma_kind and same_matrix(plain, known);
