#!/bin/bash
# gitops_sync.sh: update one checkout from its remote and deploy it.
#
# Rules:
# 1. git is the source of truth. The values of a webhook (GITOPS_REF, GITOPS_AFTER) are hints. They decide whether the
#    run asks the remote with `ls-remote` or with `fetch`, and nothing else.
# 2. A run never destroys a person's work: edits (staged or not), untracked and ignored files, commits, branches, stashes.
# 3. A run may be killed at any point. It writes its intention to a note (`move_note`) before it acts, so that the next
#    run can distinguish half-written files from a person's files and can repeat a deploy that did not finish.
# 4. Every run ends with one outcome, one exit status and one message (`finish`).
# 5. Code from a pushed tree runs only if gitops.deploy or gitops.health runs it. git's hooks are disabled.
# 6. A run that received no answer from the remote confirms nothing.
#
# docs/sync.md lists every state of a checkout, its outcome, and the test that covers it.
# shellcheck source-path=SCRIPTDIR
set -uo pipefail
shopt -s extglob nullglob dotglob globstar globasciiranges

usage() {
    cat <<'END'
usage: gitops_sync.sh [--dry-run] [--again] [--force] NAME

Update the checkout NAME under $GITOPS_ROOT (/srv/gitops) from its remote, and deploy it.
NAME is a repository, and with @ENVIRONMENT one of its other checkouts: site, acme/site, acme/site@staging.

  --dry-run  report what a run would move, deploy or refuse; change nothing except fetched objects
  --again    deploy even if no deploy is pending
  --force    the same, and deploy even a commit whose health check failed before;
             it overrides neither gitops.paused nor gitops.verify nor a person's work
  --help     print this text

The settings are in the checkout's git config, for example: git config gitops.branch production
  branch  tag  deploy  health  healthTimeout  paths  verify  submodules  paused  pin  approved  timeout
  diverged = refuse | reset     dirty = refuse | stash

exit  0 updated, unchanged, cloned, paused, held   64 usage           65 diverged, dirty, unverified
     66 missing, mismatch                          70 deploy-failed   71 rolled-back
     75 unreachable, early, no-access              77 denied           1 failed
END
}

# The exit status of each outcome.
declare -A EXIT=(
    [updated]=0 [unchanged]=0 [cloned]=0 [paused]=0 [held]=0 [failed]=1 [usage]=64 [diverged]=65 [dirty]=65 [unverified]=65
    [missing]=66 [mismatch]=66 [deploy-failed]=70 [rolled-back]=71 [unreachable]=75 [early]=75
    [no-access]=75 [denied]=77
)

# The settings of a checkout (`git config gitops.<name>`) and their defaults. Names are in lower case, as git reports them.
declare -A setting=(
    [branch]='' [tag]='' [deploy]='' [health]='' [healthtimeout]=30 [paths]='' [diverged]=refuse [dirty]=refuse
    [submodules]=false [paused]=false [pausedby]='' [verify]=false [pin]='' [pinnedby]=''
    [pintip]='' [approved]='' [timeout]=600
)

# ------------------------------------------------------------------------------------------------- global variables

# The request: command line and hints.
script=${BASH_SOURCE[0]}                # the real path of this file; a repair starts it again
if [[ $script != /* || -L $script ]]; then script=$(readlink -f -- "$script"); fi
arguments=("$@")                        # the command line, for that second start
dry_run='' again='' force=''            # "yes" if the option was given
name='' repository=''                   # "site" or "site@staging", and "acme/site" if the owner is known
announced_branch='' announced_tag=''    # GITOPS_REF and GITOPS_AFTER: text from outside, only ever compared
announced_commit=''

# The checkout.
checkout=''                       # its absolute path, which is also the working directory
created=''                        # "yes" if this run created the directory, for a clone
lock_directory=''                 # the directory of the lock file
common_dir=''                     # the repository's directory; differs from GIT_DIR in a linked worktree
state_refs=''                     # the prefix of the refs `deployed` and `bad`
move_note=''                      # a file: empty, or "<from> <to> [started]" while a move or deploy is unfinished
origin=''                         # the remote's URL without a password, for messages
paths=()                          # the values of gitops.paths
declare -A config=()              # git's configuration of all scopes, by key
declare -A setting_file=()        # the file that contains each setting

# Commits and branches. Commits are full ids; empty means that there is none.
head='' head_branch=''            # HEAD's commit and branch; no branch if HEAD is detached
default_branch=''                 # the remote's default branch, as refs/remotes/origin/HEAD has it
deployed='' bad=''                # the last commit deployed with success; a commit whose health check failed
declare -A local_branch=()        # the commit of each local branch
declare -A release=()             # the commit of refs/gitops/tags/<tag>
releases=() followed=''           # those tags in the order of versions, and the one in refs/gitops/tag
declare -A tracking=()            # the commit of refs/remotes/origin/<branch>, for the branches that matter
branch=''                         # the tracked branch
tag=''                            # the tag at the remote that is followed instead of the branch
target='' previous_tip=''         # its commit at the remote, now and when the remote was last asked
held=''                           # why another commit is the target instead: a pin, a roll-out, a lower version
before=''                         # HEAD's commit when the run began

# The remote's answer.
answer=''                         # standard output of the last command that talked to the remote
remote_messages='' remote_error='' # its error output, and the line of it that gives the reason
remote_limit=0 remote_seconds=0   # the time that such commands may take in this run, and have taken
renamed=''                        # owner/name, if the remote redirects to a repository of this name
is_announced_shown=''             # "yes" if it named the announced tag with the announced commit
remote_default=''                 # the default branch that the remote named
declare -A remote_tip=()          # the commit of each branch that the remote named

# The progress of the run.
deploy_pending=''                 # "yes" if an earlier run left a deploy unfinished
deploy_started=''                 # "started" if a deploy of the checked-out commit began and was not recorded
moved='' cloned='' action=''      # what the run did: "yes", "cloned", "deployed"
failure=''                        # the reason of a failed deploy or health check
git_error='' blocking_paths=()    # the last error line of git, and the files that git refused to overwrite
filtered_paths=()                 # files that only git's filters changed
removed_submodules=()             # paths of submodules that the run removed
notes=''                          # additions to the message, each starting with "; "
repaired=${GITOPS_REPAIRED:-}     # the repair that started this run, as a sentence
cause=''                          # "renamed" if a person must act although the run succeeded
steps=()                          # finished steps and their times, alternating

# ------------------------------------------------------------------------------------------------------------- parts

# shellcheck source=sync/result.sh
source "${script%/*}/sync/result.sh"
# shellcheck source=sync/fix.sh
source "${script%/*}/sync/fix.sh"
# shellcheck source=sync/checkout.sh
source "${script%/*}/sync/checkout.sh"
# shellcheck source=sync/settings.sh
source "${script%/*}/sync/settings.sh"
# shellcheck source=sync/git.sh
source "${script%/*}/sync/git.sh"
# shellcheck source=sync/lock.sh
source "${script%/*}/sync/lock.sh"
# shellcheck source=sync/remote.sh
source "${script%/*}/sync/remote.sh"
# shellcheck source=sync/tags.sh
source "${script%/*}/sync/tags.sh"
# shellcheck source=sync/recover.sh
source "${script%/*}/sync/recover.sh"
# shellcheck source=sync/undo.sh
source "${script%/*}/sync/undo.sh"
# shellcheck source=sync/local_work.sh
source "${script%/*}/sync/local_work.sh"
# shellcheck source=sync/move.sh
source "${script%/*}/sync/move.sh"
# shellcheck source=sync/submodules.sh
source "${script%/*}/sync/submodules.sh"
# shellcheck source=sync/deploy.sh
source "${script%/*}/sync/deploy.sh"

# --------------------------------------------------------------------------------------------------------------- run

main() {
    trap end_on_term TERM
    exec </dev/null
    # When memory is exhausted, the kernel ends a run before the daemon: proc(5).
    { echo 500 >/proc/self/oom_score_adj; } 2>/dev/null
    read_arguments "$@"
    read_hints
    enter_checkout
    if has_repository; then
        find_repository
        check_owner
        take_lock "$lock_directory" || finish unreachable "'$checkout/.git' is being replaced; tried again later"
        complete_interrupted_swap
    else
        clone
        find_repository
    fi
    read_settings || repair_or_fail 'git cannot read its configuration'
    share_files
    forbid_prompts
    check_origin
    end_if_paused
    check_paths
    remove_stale_locks
    read_refs
    before=$head
    undo_unfinished_move
    locate_upstream
    record_step fetched
    hold_target
    if [[ -s $move_note || $deployed != "$head" || $again ]]; then deploy_pending=yes; fi

    if is_known_bad; then
        keep_last_good
    elif is_at_target; then
        [[ $deploy_pending ]] || end_unchanged
        check_signature
        check_lfs
        [[ ! $dry_run ]] || finish unchanged "would deploy ${head:0:10}"
    else
        check_signature
        check_lfs
        keep_local_commits
        [[ ! $dry_run ]] || preview_move
        move
    fi
    update_submodules
    deploy_if_pending
    collect_garbage
    end_updated
}

# Return true if the target failed its health check before and there is a good commit to keep instead.
is_known_bad() { [[ $target == "$bad" && $deployed && ! $force ]]; }

is_at_target() { [[ $head == "$target" && $head_branch == "$branch" ]]; }

# End a run that found nothing to do. An unreadable checkout is repaired instead of confirmed.
end_unchanged() {
    is_complete || repair_or_fail 'objects are missing'
    if [[ $held ]]; then conclude unchanged "the checkout is at ${head:0:10}"; fi
    conclude unchanged "${tag:-$branch} is at ${head:0:10}, the remote's commit"
}

end_updated() {
    local outcome=unchanged place=${tag:-$branch}
    if [[ $moved || $action ]]; then outcome=updated; fi
    if [[ $held ]]; then place=$branch; fi # the tag names the commit at the remote
    conclude "${cloned:-$outcome}" "$place is at ${head:0:10}${moved:+${before:+, moved from ${before:0:10}}}${action:+, $action}"
}

# conclude OUTCOME MESSAGE [FIX]: end a run that is at its target. If the remote does not show the announced commit, the
# webhook was faster than the remote's replica, or a force push has replaced the commit: the daemon retries. For a held
# checkout, that matters only if the announced commit releases its pin.
# Sets: cause.
conclude() {
    if is_early && [[ ! $held || ${setting[pintip]} ]]; then
        finish early "$2; ${announced_commit:0:10} was announced and is not at $origin yet; tried again later"
    fi
    if [[ $held ]] && ((EXIT[$1] == 0)); then set -- held "$2; the remote is at ${previous_tip:0:10}, $held"; fi
    if [[ $1 != rolled-back ]]; then
        if is_other_name "$renamed"; then
            cause=renamed
            finish "$1" "$2; the forge calls the repository $renamed now" "$(rename_fix)"
        fi
        # A stolen secret can announce any name, so no command contains it.
        if is_other_name "${GITOPS_RENAMED:-}"; then
            cause=renamed
            finish "$1" "$2; a webhook calls the repository $GITOPS_RENAMED; rename the checkout if the forge agrees"
        fi
    fi
    finish "$@"
}

main "$@"
