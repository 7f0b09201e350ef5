-- title: Models side by side, role by role
-- about: One line per role and model, models under one another. Give a and b to put two beside each other; there is no line
--   if one of them is not scanned. Differences (delta:BASE..TUNED) are no models unless named. All means
--   are over the matrices of that role, whatever their shape. p_difference is how much more random a model is in that role than the
--   models shown are on average.
-- param: a VARCHAR = NULL | only this model, and b
-- param: b VARCHAR = NULL | only this model, and a
-- param: revision VARCHAR = NULL | of each model the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- column: role | what the matrix does in its block
-- column: model | the model's name
-- column: matrices | matrices of this role
-- column: shapes | their rows x cols
-- column: parameters | their entries
-- column: p | mean of u_p and v_p
-- column: p_difference | p minus the mean of the models shown; empty where there is one only
-- column: u_p | left vectors: mean p-value; 0.5 for random matrices
-- column: v_p | right vectors: the same
-- column: left_percent | singular values below the Marchenko-Pastur bulk, per cent
-- column: right_percent | singular values above it, per cent
-- column: mp_ks | largest distance between a spectrum and its Marchenko-Pastur law, mean
-- column: stable_rank_percent | stable rank, per cent of min(rows, cols), mean
-- column: effective_rank_percent | effective rank, per cent of min(rows, cols), mean
with roles as (
    select
        role,
        model,
        count(*)::integer as matrices,
        string_agg(distinct rows || 'x' || cols, ', ' order by rows || 'x' || cols) as shapes,
        sum(rows::bigint * cols)::bigint as parameters,
        (avg(u_p_mean) + avg(v_p_mean)) / 2 as p,
        avg(u_p_mean) as u_p,
        avg(v_p_mean) as v_p,
        100 * sum(outliers_left) / sum(least(rows, cols)) as left_percent,
        100 * sum(outliers_right) / sum(least(rows, cols)) as right_percent,
        avg(mp_ks) as mp_ks,
        100 * avg(stable_rank / least(rows, cols)) as stable_rank_percent,
        100 * avg(effective_rank / least(rows, cols)) as effective_rank_percent
    from matrices
    semi join (
        from chosen_scans(coalesce($a, $b), $revision)
        union
        from chosen_scans(coalesce($b, $a), $revision)
    ) using (scan_id)
    where
        ($role is null or role = $role)
        and (head is not null) = $heads
    group by role, model
)

select
    role,
    model,
    matrices,
    shapes,
    parameters,
    p,
    case when count(*) over (partition by role) > 1 then p - avg(p) over (partition by role) end as p_difference,
    u_p,
    v_p,
    left_percent,
    right_percent,
    mp_ks,
    stable_rank_percent,
    effective_rank_percent
from roles
where $a is null or $b is null or $a = $b or (select count(distinct model) from roles) = 2
order by role_order(role), role, model;
