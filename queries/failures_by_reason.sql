-- title: Why tensors could not be analysed
-- about: Failures of the newest revision of every model, the commonest reason first. Messages that differ in numbers or
--   in quoted names only count as one reason, and are shown with # and '...' in their place.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: stage VARCHAR = NULL | only this stage (open, read, decode, analyse)
-- column: stage | where it happened: open, read, decode or analyse
-- column: error | type of the error
-- column: reason | its message, without numbers and quoted names
-- column: failures | how often
-- column: models | in how many models
-- column: example_model | the first of these models
-- column: example_tensor | its first tensor; empty if the checkpoint itself could not be opened
-- column: example_message | the message of that one
with failed as (
    select
        *,
        regexp_replace(
            regexp_replace(message, $re$'[^']*'|"[^"]*"$re$, '''...''', 'g'), '[0-9]+([.][0-9]+)?', '#', 'g'
        ) as reason
    from failures
    semi join chosen_scans($model, $revision) using (scan_id)
    where $stage is null or stage = $stage
)

select
    stage,
    error,
    reason,
    count(*)::integer as failures,
    count(distinct model)::integer as models,
    first(model order by model, tensor) as example_model,
    first(tensor order by model, tensor) as example_tensor,
    first(message order by model, tensor) as example_message
from failed
group by stage, error, reason
order by failures desc, models desc, stage, error, reason;
