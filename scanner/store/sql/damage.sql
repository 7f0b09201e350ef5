-- Points of the selected runs that have values by window, with the damage per token or example: nats for perplexity (the increase of its
-- logarithm) and kl, lost accuracy. `excess` is the damage of each window, `weights` its tokens (examples), `tokens` their sum.
create macro damage(wanted_model, wanted_run, wanted_metric) as table
with intact as (
    select
        run_id,
        list(weight order by "window") as weights,
        list(sum order by "window") as sums,
        sum(weight) as tokens
    from baselines
    group by run_id
)

select
    points.*,
    intact.weights,
    intact.tokens as weight,
    list_transform(
        list_zip(points.window_sums, intact.sums),
        lambda pair: case
            when points.metric = 'accuracy' or starts_with(points.metric, 'lm-eval:') then pair[2] - pair[1]
            else pair[1] - pair[2]
        end
    ) as excess,
    list_sum(excess) / intact.tokens as damage
from ablation_points(wanted_model, wanted_run, wanted_metric) as points
join intact on points.run_id = intact.run_id and len(points.window_sums) = len(intact.sums);
