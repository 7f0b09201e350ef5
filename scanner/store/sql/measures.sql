-- Measures of a set of matrices, by the name that a query takes as its parameter `measure`, and the columns that they are shown in.
-- `matrix` is the name of a relation with the columns of `matrices`: `measured(chosen, $measure)` is an aggregate.
create macro measured(matrix, measure) as
    case measure
        when 'p' then (avg(matrix.u_p_mean) + avg(matrix.v_p_mean)) / 2
        when 'u_p' then avg(matrix.u_p_mean)
        when 'v_p' then avg(matrix.v_p_mean)
        when 'p_scale' then (avg(matrix.u_p_scale_mean) + avg(matrix.v_p_scale_mean)) / 2
        when 'below_percent' then 100 * sum(matrix.outliers_left) / sum(least(matrix.rows, matrix.cols))
        when 'above_percent' then 100 * sum(matrix.outliers_right) / sum(least(matrix.rows, matrix.cols))
        when 'mp_ks' then avg(matrix.mp_ks)
        when 'stable_rank' then avg(matrix.stable_rank)
        when 'stable_rank_percent' then 100 * avg(matrix.stable_rank / least(matrix.rows, matrix.cols))
        when 'effective_rank_percent' then 100 * avg(matrix.effective_rank / least(matrix.rows, matrix.cols))
        when 'spectral_norm' then avg(matrix.spectral_norm)
        else error('measure must be one of p, u_p, v_p, p_scale, below_percent, above_percent, mp_ks, stable_rank, '
            || 'stable_rank_percent, effective_rank_percent, spectral_norm')
    end;
-- Role in tables with a column for each role of a block; embeddings and others share one.
create macro role_column(role) as
    case
        when role in ('query', 'key', 'value', 'attn_out', 'mlp_up', 'mlp_gate', 'mlp_down') then role
        else 'other'
    end;

-- Step of a training in the names of a checkpoint (its revision and its model, the first that has one): the last number that stands
-- behind a word such as `step`; null if there is none.
create macro training_step(names) as
    list_filter(
        list_transform(
            names,
            lambda name: try_cast(
                regexp_extract_all(name, '(?i)(?:step|checkpoint|ckpt|iter|epoch)s?[-_]?([0-9]+)', 1)[-1] as bigint
            )
        ),
        lambda step: step is not null
    )[1];
