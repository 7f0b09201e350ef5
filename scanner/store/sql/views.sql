-- What queries read. Scans of which every result is the newest are read whole, without a join; scans of which every
-- result is superseded are not read at all; from the others the superseded matrices are left out.
create view matrices as
from files.whole_matrices
union all by name
select result.*
from files.partly_matrices as result
anti join files.superseded as old
    on old.scan_id = result.scan_id
    and old.tensor = result.tensor
    and old.role = result.role
    and old.head is not distinct from result.head
    and old.expert is not distinct from result.expert;

create view vectors as
from files.whole_vectors
union all by name
select result.*
from files.partly_vectors as result
anti join files.superseded as old
    on old.scan_id = result.scan_id
    and old.tensor = result.tensor
    and old.role = result.role
    and old.head is not distinct from result.head
    and old.expert is not distinct from result.expert;

-- Scans of one model, or of all (null), in one revision each: the newest that begins with `wanted_revision`.
-- `semi join chosen_scans($model, $revision) using (scan_id)` makes DuckDB skip the other models' row groups.
create macro chosen_scans(wanted_model, wanted_revision) as table
select scan_id
from scans
where
    (wanted_model is null or model = wanted_model)
    and (wanted_revision is null or starts_with(revision, wanted_revision))
qualify
    revision is not distinct from first_value(revision) over (
        partition by model
        order by (revision = wanted_revision) desc nulls last, finished_at desc nulls last, scan_id desc
    );

-- The newest comparison of every pair of models, or of the pairs that are wanted (null: all).
-- `semi join chosen_comparisons($base, $tuned) using (pair_id)`.
create macro chosen_comparisons(wanted_base, wanted_tuned) as table
select pair_id
from comparisons
where
    (wanted_base is null or base_model = wanted_base)
    and (wanted_tuned is null or tuned_model = wanted_tuned)
qualify
    row_number() over (partition by base_model, tuned_model order by finished_at desc nulls last, pair_id desc) = 1;

-- Roles in the order of the data's way through a block, for ORDER BY.
create macro role_order(role) as
    coalesce(
        list_position(
            [
                'embedding', 'query', 'key', 'value', 'attn_out', 'mlp_up', 'mlp_gate', 'mlp_down', 'router', 'other',
                'lm_head'
            ],
            role
        ),
        100
    );
