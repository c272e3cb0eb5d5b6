#!/bin/bash
# gitops_sync.sh: bring one checkout to where its upstream is, and deploy it.
#
# Rules:
# 1. git is asked what is true. What a webhook said (GITOPS_*) is a hint that can only save work.
# 2. Nothing that a person made is destroyed: edits, staged or not, untracked and ignored files, commits, branches.
# 3. A run may die at any point. What it was about to do stands in a note beside the repository (`unfinished`),
#    so the next run can tell the dead run's half-written files from a person's, and a deploy that is owed.
# 4. Every end is one outcome with one exit code and one sentence that names the cure.
# 5. Nothing from a pushed tree runs unless gitops.deploy or gitops.health says so: git's hooks are off.
#
# docs/sync.md has the table of every state, what happens in it, and the test that shows it.
# shellcheck disable=SC2015 # `A && B || C` is meant: C wherever one of them fails
set -uo pipefail
shopt -s nullglob dotglob globstar globasciiranges nocaseglob

usage() {
    cat <<'END'
usage: gitops_sync.sh [--dry-run] [--force] NAME

Bring the checkout of the repository NAME under $GITOPS_ROOT (/srv/gitops) to its upstream, and deploy it.

  --dry-run  say what would move, be deployed or be refused; touch nothing but fetched objects
  --force    deploy even if nothing is owed, and even a commit whose health check has failed before;
             it overrides neither a pause, nor gitops.verify, nor a person's work in the way
  --help     show this

Settings live in the checkout: git config gitops.branch production
  branch  deploy  health  healthTimeout  paths  verify  submodules  paused  timeout
  diverged = refuse | reset     dirty = refuse | stash

exit  0 updated, unchanged, cloned, paused    64 usage           65 diverged, dirty, unverified
     66 missing, mismatch                     70 deploy-failed   71 rolled-back
     75 unreachable                           77 denied           1 failed
END
}

declare -A EXIT=(
    [updated]=0 [unchanged]=0 [cloned]=0 [paused]=0 [failed]=1 [usage]=64 [diverged]=65 [dirty]=65 [unverified]=65
    [missing]=66 [mismatch]=66 [deploy-failed]=70 [rolled-back]=71 [unreachable]=75 [denied]=77
)

# finish OUTCOME SENTENCE: say how it ended, in the log and to whoever gave GITOPS_RESULT, and end.
finish() {
    local outcome=$1 message="${repository:-${name:-gitops_sync.sh}}: $2$kept${mended:+; $mended}" code
    while [[ $message =~ [[:cntrl:]] ]]; do
        printf -v code '\\x%02x' "'${BASH_REMATCH[0]}"
        message=${message//"${BASH_REMATCH[0]}"/"$code"}
    done
    printf '%s: %s\n' "$outcome" "$message"
    if [[ ${GITOPS_RESULT:-} ]]; then
        printf '%s=%s\n' outcome "$outcome" before "$before" after "$head" message "$message" "${steps[@]}" \
            >"$GITOPS_RESULT" ||
            # Not heard, a 0 is taken for "updated", which may be better than the truth.
            [[ $outcome == updated ]] || ((EXIT[$outcome])) || outcome=failed
    fi
    exit "${EXIT[$outcome]}"
}

# done_with STEP: note when it was over, in seconds since the epoch, for whoever gave GITOPS_RESULT. It costs no process:
# bash knows microseconds from 5.0 on, with whatever sign the locale puts before them, and earlier whole seconds.
done_with() {
    local at=${EPOCHREALTIME:-}
    at=${at//[!0-9]/}
    if [[ $at ]]; then at=${at::-6}.${at: -6}; else printf -v at '%(%s)T' -1; fi
    steps+=("$1" "$at")
}

# ------------------------------------------------------------------------------------------------- which checkout

self=$0
[[ $self == /* ]] || self=$PWD/$self
dry_run='' force='' origin='' name='' repository='' checkout='' state='' words='' before='' head=''
head_branch='' default_branch='' deployed='' bad='' answer=''
asked='' locked='' settings='' branch='' known='' target='' refetched='' cloned='' moved='' owed='' tried='' failure=''
kept='' did=''
mended=${GITOPS_MENDED:-} # what repair() did, when this run began by mending the repository
arguments=("$@") steps=()
# What the webhook said: text from outside, compared with, never passed on.
hinted_branch=${GITOPS_REF:-} hinted_commit=${GITOPS_AFTER:-}
# Of several webhooks these are the last one's to arrive, which need not tell of the last push.
[[ ${GITOPS_DELIVERIES:-1} == 1 ]] || hinted_commit=''
[[ $hinted_branch == refs/heads/* ]] && hinted_branch=${hinted_branch#refs/heads/} || hinted_branch=''

read_arguments() {
    while [[ ${1:-} == --* ]]; do
        case $1 in
            --dry-run) dry_run=yes ;;
            --force) force=yes ;;
            --help) usage && exit 0 ;;
            *) finish usage "there is no option $1; see gitops_sync.sh --help" ;;
        esac
        shift
    done
    (($# == 1)) || finish usage "give one repository's name, not $#; see gitops_sync.sh --help"
    is_name "$1" || finish usage "'${1:0:120}' is not a repository's name: at most 100 of A-Z a-z 0-9 . _ -"
    name=$1
    [[ ${GITOPS_REPOSITORY:-$name} != "$name" ]] || return 0 # the owner is not known
    local owner=${GITOPS_REPOSITORY%%/*} rest=${GITOPS_REPOSITORY#*/}
    is_name "$owner" && is_name "$rest" && [[ $GITOPS_REPOSITORY == */* && ${rest,,} == "${name,,}" ]] ||
        finish usage "GITOPS_REPOSITORY must be owner/$name, not '${GITOPS_REPOSITORY:0:220}'"
    repository=$owner/$rest
}

# One part of a name, safe as a part of a path.
is_name() {
    [[ $1 && $1 != *[!A-Za-z0-9._-]* && $1 != -* && $1 != . && $1 != .. && ${1,,} != .git ]] && ((${#1} <= 100))
}

# Find the checkout and go there: <root>/<owner>/<name>, else <root>/<name>; exact, else whatever differs in case.
enter_checkout() {
    local root=${GITOPS_ROOT:-/srv/gitops} owner='*' pattern place places found=()
    cd -P -- "$root" 2>/dev/null || finish missing "the root '$root' cannot be entered; mkdir -p '$root'"
    root=$PWD
    export GITOPS_ROOT=$root # absolute, for the deploy and for a second beginning
    [[ $repository ]] && owner=${repository%/*}
    # nocaseglob folds the case of a part only if it holds a pattern, hence [s]ite.
    local any_case="[${name:0:1}]${name:1}" any_owner=$owner
    [[ $repository ]] && any_owner="[${owner:0:1}]${owner:1}"
    places=("$owner/$name" "$any_owner/$any_case" "$name" "$any_case")
    [[ $repository ]] || places=("$name" "$any_case" "*/$name" "*/$any_case")
    for pattern in "${places[@]}"; do
        # shellcheck disable=SC2231 # a pattern without spaces, made to be expanded
        for place in $pattern/.gi[t] $pattern/.git:gitops-read[y]; do
            # What a checkout's own tree holds, a submodule or a link, is none.
            [[ $place == */*/* && -e ${place%%/*}/.git ]] || found+=("${place%/*}")
        done
        ((${#found[@]})) && break
    done
    ((${#found[@]} < 2)) || [[ ${found[*]} == "${found[0]} ${found[0]}" ]] ||
        finish usage "more than one checkout fits: ${found[*]}; set GITOPS_REPOSITORY=owner/$name"
    if ((${#found[@]} == 0)); then
        prepare_clone "$root" "${repository:-$name}"
    else
        checkout=$root/${found[0]}
    fi
    cd -P -- "$checkout" 2>/dev/null || finish denied "'$checkout' cannot be entered by $(id -un); $(mend_owner)"
    checkout=$PWD
    shopt -u nocaseglob # from here on case counts: a branch may be called Yarn.LOCK
}

mend_owner() { printf "sudo chown -R '%s' '%s'" "$(id -un)" "$checkout"; }

# No checkout: make a folder for a clone, if the daemon's settings allow one, or say what is there instead.
prepare_clone() {
    checkout=$1/$2
    local inside=("$checkout"/*)
    local cure="git clone '${GITOPS_CLONE_URL:-<url>}' '$checkout'"
    if ((${#inside[@]})) && [[ ${inside[*]##*/} != .git:gitops-building ]]; then
        finish missing "'$checkout' holds files but no git repository; move it away, then $cure"
    elif [[ ! ${GITOPS_CLONE_URL:-} || $dry_run ]]; then
        finish missing "there is no checkout at '$checkout'; $cure; if it was renamed, move its checkout there"
    elif [[ $2 == */* && -e ${checkout%/*}/.git ]]; then
        finish missing "'${checkout%/*}' is itself a checkout; move it, and a clone can be made inside"
    fi
    mkdir -p -- "$checkout" || finish denied "'$checkout' cannot be made; sudo install -d -o '$(id -un)' '$checkout'"
}

# ------------------------------------------------------------------------------------------------- git, held tight

# Whatever the caller's git was told (a hook, an alias) must not lead ours to another repository.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_COMMON_DIR \
    GIT_NAMESPACE GIT_PREFIX GIT_CONFIG GIT_CONFIG_PARAMETERS GIT_SHALLOW_FILE GIT_GRAFT_FILE GIT_IMPLICIT_WORK_TREE

# Hooks and fsmonitor are off: core.hooksPath may point into the tree (husky sets it so), and then a push would run.
# No tree may hold a name that NTFS takes for .git, as are those of the repositories that we build beside it.
GIT=(git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c protocol.ext.allow=never -c core.protectNTFS=true)

# What we set for our git is unset again for the operator's commands.
ours=(GIT_DIR GIT_WORK_TREE GIT_TERMINAL_PROMPT GIT_ASKPASS SSH_ASKPASS GITOPS_RESULT GITOPS_CLONE_URL GITOPS_MENDED)

# Descriptor 9 is the lock. No child gets it, for a child that lives on would hold it.
git() { command "${GIT[@]}" "$@" 9<&-; }

# ---------------------------------------------------------------------------------------------- what the place says

# Name the repository outright, so that git never searches and never finds one that this folder is nested in.
find_repository() {
    export GIT_DIR=$checkout/.git GIT_WORK_TREE=$checkout
    if [[ -f .git ]]; then # a linked worktree, or a submodule's checkout
        read -r _ GIT_DIR <.git
        [[ $GIT_DIR == /* ]] || GIT_DIR=$checkout/$GIT_DIR
        [[ -d $GIT_DIR ]] || finish missing "'$checkout/.git' points to '$GIT_DIR', which is gone; git worktree repair"
    fi
    common_dir=$GIT_DIR state=refs/gitops unfinished=$GIT_DIR/gitops-unfinished
    if [[ -f $GIT_DIR/commondir ]]; then # what is deployed here is not what is deployed in the other worktrees
        read -r common_dir <"$GIT_DIR/commondir"
        [[ $common_dir == /* ]] || common_dir=$GIT_DIR/$common_dir
        state=refs/worktree/gitops
    fi
}

# Whose files these are decides who may run in them: a stranger's .git/config can name any command.
check_owner() {
    # Where the owner differs, git's own safe.directory rule decides.
    [[ -O . && -O .git ]] ||
        (unset GIT_DIR GIT_WORK_TREE && GIT_CEILING_DIRECTORIES=${PWD%/*} git rev-parse 2>/dev/null) ||
        finish denied "'$checkout' belongs to another user than $(id -un); $(mend_owner)"
    local place
    for place in . "$GIT_DIR" "$common_dir/objects"; do
        [[ ! -e $place || -w $place ]] ||
            finish denied "'$checkout' cannot be written by $(id -un); unless it is read-only, $(mend_owner)"
    done
}

in_the_way=() retired=()
declare -A config=() tracking=() local_branch=() setting=(
    [branch]='' [deploy]='' [health]='' [healthtimeout]=30 [paths]='' [diverged]=refuse [dirty]=refuse
    [submodules]=false [paused]=false [verify]=false [timeout]=600
)

# Let git begin to tell them while something else is done.
ask_settings() {
    # The exit status goes last: bash may lose that of a process substitution.
    exec {settings}< <(git config --show-scope --null \
        --get-regexp '^(gitops\.|remote\.origin\.url|core\.sshcommand)' 2>/dev/null; printf '%s\0' "$?")
}

# Read the settings, all at once; only the checkout's own config counts, not the user's. False: git cannot read them.
read_settings() {
    local entries scope key value i
    [[ $settings ]] || ask_settings
    mapfile -d '' -t entries <&"$settings"
    exec {settings}<&-
    settings=''
    [[ ${entries[-1]} == [01] ]] || return 1 # 1: nothing is set
    setting[paths]=''
    for ((i = 0; i + 1 < ${#entries[@]}; i += 2)); do
        scope=${entries[i]} key=${entries[i + 1]%%$'\n'*} value=true
        [[ ${entries[i + 1]} == *$'\n'* ]] && value=${entries[i + 1]#*$'\n'}
        config[$key]=$value
        [[ $key == gitops.* && ($scope == local || $scope == worktree) ]] || continue
        [[ $key == gitops.paths ]] && value+=" ${setting[paths]}"
        setting[${key#gitops.}]=$value
    done
    for key in submodules paused verify; do
        case ${setting[$key],,} in
            true | yes | on | 1) setting[$key]=true ;;
            false | no | off | 0 | '') setting[$key]=false ;;
            *) refuse_setting "$key" 'true or false' ;;
        esac
    done
    [[ ${setting[diverged]} == @(refuse|reset) ]] || refuse_setting diverged 'refuse or reset'
    [[ ${setting[dirty]} == @(refuse|stash) ]] || refuse_setting dirty 'refuse or stash'
    [[ ${setting[timeout]} =~ ^[1-9][0-9]{0,5}$ ]] || refuse_setting timeout 'a number of seconds'
    [[ ${setting[healthtimeout]} =~ ^(0|[1-9][0-9]{0,5})$ ]] || refuse_setting healthTimeout 'a number of seconds'
    [[ ! ${setting[branch]} ]] || is_branch "${setting[branch]}" || refuse_setting branch "a branch's name"
}

refuse_setting() {
    finish usage "gitops.$1 must be $2, not '${setting[${1,,}]}'; git -C '$checkout' config gitops.$1 ..."
}

# git check-ref-format, without its process.
is_branch() {
    [[ $1 && $1 != *[[:cntrl:]\ ~^:?*\\[]* && $1 != [-/.]* && $1 != *@(..|//|@\{|/.)* && $1 != *@(/|.|.lock) ]]
}

is_commit() { [[ $1 =~ ^([0-9a-f]{40}|[0-9a-f]{64})$ && $1 == *[!0]* ]]; }

# Is origin the repository that was pushed? Compared are the last parts of its URL, letter case and .git aside.
check_origin() {
    local wanted=${repository:-$name} url=${config[remote.origin.url]:-}
    name_origin "$url"
    # Where git knows no repository at all it finds no settings either, and says nothing.
    [[ $url ]] || git rev-parse --git-dir &>/dev/null || repair_or_fail 'git does not know it for a repository'
    [[ $url ]] || finish mismatch "'$checkout' has no remote called origin; git -C '$checkout' remote add origin <url>"
    url_ends_in "$wanted" "$url" && return
    # url.<base>.insteadOf may stand between the URL and the name.
    url_ends_in "$wanted" "$(git ls-remote --get-url origin)" && return
    finish mismatch "'$checkout' is a checkout of $origin, not of $wanted; if it was renamed or transferred, \
git -C '$checkout' remote set-url origin <url of $wanted>"
}

# A remote's URL as it may stand in a message, without a password: `origin`.
name_origin() { if [[ $1 =~ ^([^/]*://)[^/]*@(.*)$ ]]; then origin=${BASH_REMATCH[1]}${BASH_REMATCH[2]}; else origin=$1; fi; }

url_ends_in() {
    local url=${2,,}
    while [[ $url == */ ]]; do url=${url%/}; done
    [[ /${url%.git} == *[/:]"${1,,}" ]]
}

# Read every ref that matters; and again whenever a person has had the time to commit.
read_refs() {
    read_refs_as_files "${branch:-${setting[branch]}}" || list_refs || repair_or_fail 'HEAD or its commit cannot be read'
}

# In the ordinary case, HEAD on the tracked branch, as files, which spares a process. False: ask git.
read_refs_as_files() {
    local branch=$1 packed='' name
    [[ $state == refs/gitops && ! -e $common_dir/reftable ]] || return
    {
        # At most what bash reads at once; a longer list is git's to search.
        ! IFS= read -r -N 200000 packed <"$GIT_DIR/packed-refs" || return
        read -r _ default_branch <"$GIT_DIR/refs/remotes/origin/HEAD"
        read -r _ head_branch <"$GIT_DIR/HEAD"
    } 2>/dev/null
    default_branch=${default_branch#refs/remotes/origin/} head_branch=${head_branch#refs/heads/}
    [[ $head_branch == "${branch:=$default_branch}" ]] && is_branch "$branch" || return
    read_ref "refs/heads/$branch" && is_commit "$REPLY" || return
    head=$REPLY local_branch[$branch]=$REPLY
    read_ref "refs/remotes/origin/$branch" && is_commit "$REPLY" && tracking[$branch]=$REPLY || return
    for name in deployed bad; do
        if read_ref "$state/$name"; then
            is_commit "$REPLY" || return
        fi
        printf -v "$name" %s "$REPLY"
    done
}

# A ref's id, or nothing, from its own file or else from the packed ones.
read_ref() {
    REPLY=''
    if [[ -e $GIT_DIR/$1 ]]; then
        read -r REPLY <"$GIT_DIR/$1"
    else
        [[ $packed =~ ([0-9a-f]+)" $1"$'\n' ]] && REPLY=${BASH_REMATCH[1]}
    fi
}

# False: git cannot, or HEAD's commit is gone.
list_refs() {
    local lines line field
    head='' head_branch='' default_branch='' deployed='' bad='' tracking=() local_branch=()
    mapfile -t lines < <(git for-each-ref --format='%(HEAD)%(objectname) %(refname) %(symref)' \
        refs/heads refs/remotes/origin "$state/deployed" "$state/bad" 2>/dev/null; printf '%s\n' "$?")
    [[ ${lines[-1]} == 0 ]] || return
    for line in "${lines[@]::${#lines[@]}-1}"; do
        # shellcheck disable=SC2206 # ids and refs hold neither spaces nor patterns
        field=(${line:1})
        case ${field[1]} in
            "$state/deployed") deployed=${field[0]} ;;
            "$state/bad") bad=${field[0]} ;;
            refs/remotes/origin/HEAD) default_branch=${field[2]#refs/remotes/origin/} ;;
            refs/remotes/origin/*) tracking[${field[1]#refs/remotes/origin/}]=${field[0]} ;;
            refs/heads/*) local_branch[${field[1]#refs/heads/}]=${field[0]} ;;
        esac
        [[ $line == '*'* ]] && head=${field[0]} head_branch=${field[1]#refs/heads/}
    done
    # On no branch: detached, or not yet born.
    [[ $head ]] || head=$(git rev-parse --verify --quiet 'HEAD^{commit}') || is_unborn
}

# Is HEAD a branch that never had a commit, as its missing log tells: a fresh clone's, or one that a person begins?
is_unborn() {
    local ref
    ref=$(git symbolic-ref --quiet HEAD) && [[ ! -s $common_dir/logs/$ref ]] && git ls-files &>/dev/null || return
    git rev-parse --verify --quiet "$ref" >/dev/null
    (($? == 1))
}

# Has what the webhook announced been here and deployed since long? Then there is nothing to ask anybody.
is_old_news() {
    [[ $head && $head == "$hinted_commit" && $head == "$deployed" && ! -s $unfinished && ! $force ]] &&
        [[ $head_branch == "$hinted_branch" && $head_branch == "${setting[branch]:-$default_branch}" ]]
}

is_paused() { [[ ${setting[paused]} == true ]]; }

# Many hints are old news, and end here, without the lock and before bash has read the rest of this file.
arrive() {
    exec </dev/null
    read_arguments "$@"
    enter_checkout
    [[ -e .git ]] || return
    find_repository
    check_owner
    ask_settings
    read_refs_as_files "$hinted_branch" && [[ $head == "$hinted_commit" ]] && read_settings || return
    [[ ${config[remote.origin.url]:-} ]] && check_origin && ! is_paused && is_old_news || return
    before=$head
    finish unchanged "${head:0:10} is here and deployed"
}
arrive "$@"

# The lock is on the checkout's folder: no file to go stale, and it holds while .git is replaced. It is asked for here,
# and waited for by take_lock, while bash reads on.
ask_lock() {
    exec 9<.
    flock --wait 5 9 &
    asked=$!
}
ask_lock

# --------------------------------------------------------------------------------------- one run at a time, wreckage

take_lock() {
    [[ $locked ]] && return
    [[ $asked ]] || ask_lock
    wait "$asked" || finish unreachable "another run holds '$checkout'; this one is tried again"
    locked=yes
}

# What moves the tree or deploys does not hold the lock, and must not outlive the script that does.
mortal=(setpriv --pdeathsig KILL)

# TERM ends a run, but only when all that it began is gone: a command that ignores it would go on without the lock.
# Under timeout(1) that does not last, for it kills after a while; by hand and in a pipe it lasts so long at the most.
# shellcheck disable=SC2317,SC2329 # called by a trap
end_at_term() {
    local tries
    trap '' TERM
    for ((tries = 0; tries < 150; tries++)); do
        is_alone && break
        sleep 0.1 9<&-
    done
    trap - TERM
    kill -TERM $$
}

# Is nobody else left in our process group, but timeout(1) which leads it? See proc_pid_stat(5).
# shellcheck disable=SC2317,SC2329 # called by the above
is_alone() {
    local at line mine field
    read -r line <"/proc/$$/stat"
    read -r -a mine <<<"${line##*) }"
    for at in /proc/[0-9]*/stat; do
        read -r line 2>/dev/null <"$at" || continue # it has ended
        read -r -a field <<<"${line##*) }"
        [[ ${field[2]:-} != "${mine[2]}" || ${field[0]} == Z || ${line%% *} == @($$|"${mine[2]}") ]] || return 1
    done
}

# git's own lock files outlive a git that was killed. No run of ours is alive, for we hold the lock.
clear_stale_locks() {
    local lock
    for lock in {"$GIT_DIR","$common_dir"}/*.lock "$common_dir"/objects/{,info/,info/commit-graphs/}*.lock \
        "$common_dir"/refs/**/*.lock "$common_dir"/modules/{*,*/*,*/*/*}/*.lock; do
        [[ -e $lock ]] || continue # listed twice
        is_held "$lock" && finish unreachable "a git at work here holds '$lock'; if none is, rm '$lock'"
        [[ $dry_run ]] || rm -f -- "$lock"
    done
}

# Has a living process the file open, or is a git at work here, in another worktree or in a submodule, which share
# the repository? (git commit closes the lock while its editor is up.)
is_held() {
    local at comm common
    [[ -O $1 ]] || ((EUID == 0)) || return 0 # another user's processes cannot be looked into
    for at in /proc/[0-9]*/fd/*; do
        [[ $at -ef $1 ]] && return 0
    done
    common=$(cd -P "$common_dir" && pwd)
    for at in /proc/[0-9]*/cwd; do
        read -r comm 2>/dev/null <"${at%cwd}comm" && [[ $comm == git || $comm == git-* ]] || continue
        at=$(unset GIT_DIR GIT_WORK_TREE && cd -P "$at" && cd -P "$(git rev-parse --git-common-dir)" && pwd) 2>/dev/null
        [[ $at/ == "$common"/* ]] && return 0
    done
    return 1
}

# A run that died between the two renames of repair(), or in a clone, left these beside .git.
finish_interrupted_swap() {
    if [[ $dry_run ]]; then
        [[ -e .git ]] || finish missing "'$checkout' has no repository yet; a run would complete its clone or repair"
        return
    fi
    [[ ! -e .git && -e .git:gitops-ready ]] && mv -T .git:gitops-ready .git
    [[ -e .git && -e .git:gitops-old ]] && mv -T .git:gitops-old ".git/broken-$(now)"
    [[ ! -e .git:gitops-ready && ! -e .git:gitops-building ]] || rm -rf .git:gitops-ready .git:gitops-building
}

now() { TZ=UTC0 printf '%(%Y%m%dT%H%M%SZ)T' -1; }

# Make a complete repository beside .git, so that a half-made one never passes for a checkout.
build_repository() {
    local url=$1 old_config=${2:-}
    rm -rf .git:gitops-building
    export GIT_DIR=$checkout/.git:gitops-building
    unset GIT_WORK_TREE
    git init --quiet --bare "$GIT_DIR" || return
    if [[ $old_config ]]; then cp -- "$old_config" "$GIT_DIR/config"; else git remote add origin "$url"; fi
    git config core.bare false && read_settings && forbid_prompts
    remote_git fetch --quiet --no-auto-maintenance origin
}

clone() {
    if ! build_repository "$GITOPS_CLONE_URL"; then
        cd / && rm -rf "$GIT_DIR" && rmdir -- "$checkout"
        name_origin "$GITOPS_CLONE_URL"
        finish unreachable "$origin cannot be cloned: $words; tried again later"
    fi
    mv -T .git:gitops-building .git || finish failed "'$checkout/.git' cannot be made"
    cloned=cloned
}

# Build the repository anew from the remote, and carry over all that can be read of the broken one: objects, refs,
# reflogs, index, settings. The work tree is not touched. The broken one is kept, for it may hold a person's commits.
repair() {
    local why="'$checkout' is broken: $1" url broken=$checkout/.git aside
    [[ ! $mended && -d .git && ! -L .git ]] || finish missing "$why; look into it with git -C '$checkout' fsck"
    url=$(git config --file .git/config remote.origin.url) || url='<url>'
    name_origin "$url"
    local cure="keep it aside and clone: mv '$checkout' '$checkout.broken' && git clone '$origin' '$checkout'"
    [[ $url != '<url>' ]] || finish missing "$why, and its config names no origin; $cure"
    [[ ! $dry_run ]] || finish missing "$why; a run would build its repository anew from $origin"
    take_lock
    finish_interrupted_swap
    build_repository "$url" .git/config || drop_building unreachable "$why, and $origin cannot be fetched: $words"
    carry_over "$broken" || drop_building missing "$why, and $origin has not the commit that was here; $cure"
    # Dying after any of these renames, the next run does the rest: see finish_interrupted_swap.
    aside=.git/broken-$(now)
    mv -T .git:gitops-building .git:gitops-ready && mv -T .git .git:gitops-old && mv -T .git:gitops-ready .git &&
        mv -T .git:gitops-old "$aside" || finish failed "$why, and its repository cannot be replaced"
    export GITOPS_MENDED="its repository was broken ($1) and was built anew from $origin, the old one is kept: \
rm -rf '$checkout/$aside' when nothing in it is missed"
    unset GIT_DIR GIT_WORK_TREE
    exec "$BASH" "$self" "${arguments[@]}" 9<&- # begin again, with the lock given back
}

drop_building() { rm -rf "$GIT_DIR" && finish "$@"; }

# Into the new repository, whatever of the broken one can be read; the files are linked, not copied.
carry_over() {
    local broken=$1 part id ref branch base answer
    for part in objects info hooks modules worktrees lfs logs config.worktree gitops-unfinished; do
        [[ ! -e $broken/$part ]] || cp -a --link --no-clobber -- "$broken/$part" "$GIT_DIR/" 2>/dev/null
    done
    for part in "$GIT_DIR"/objects/**; do
        [[ ! -f $part || -s $part ]] || rm -f -- "$part"
    done
    rm -rf "$GIT_DIR"/objects/info/commit-graph* "$GIT_DIR"/objects/pack/multi-pack-index
    local -A refs=()
    while read -r id ref; do # the loose refs last, for they are the newer
        is_commit "$id" && [[ $ref == refs/* && $ref != refs/remotes/* ]] &&
            git cat-file -e "$id" 2>/dev/null && refs[$ref]=$id
    done < <(cd "$broken" && {
        cat packed-refs && echo
        for ref in refs/**; do
            [[ ! -f $ref ]] || { read -r id <"$ref"; printf '%s %s\n' "$id" "$ref"; }
        done
    } 2>/dev/null)
    for ref in "${!refs[@]}"; do git update-ref "$ref" "${refs[$ref]}"; done
    # HEAD as it was; where that cannot be read, the tracked branch, as the reflog or the last deploy has it.
    read -r ref branch 2>/dev/null <"$broken/HEAD"
    if is_commit "$ref"; then
        git update-ref --no-deref HEAD "$ref" 2>/dev/null || return 1
    else
        [[ $ref == ref: && $branch == refs/heads/* ]] && is_branch "${branch#refs/heads/}" ||
            branch=refs/heads/$(git config gitops.branch || { ask_default && printf '%s' "$answer"; }) || return 1
        read -r _ base _ < <(tail -n 1 "$broken/logs/HEAD" 2>/dev/null)
        for base in "${refs[$branch]:-}" "${base:-}" "${refs[$state/deployed]:-}"; do
            is_commit "$base" && git cat-file -e "$base^{commit}" 2>/dev/null && break
        done
        git symbolic-ref HEAD "$branch" && git update-ref HEAD "$base" 2>/dev/null || return 1
    fi
    is_complete || return 1
    cp -- "$broken/index" "$GIT_DIR/index" 2>/dev/null
    git diff-index --cached --quiet HEAD 2>/dev/null || (($? == 1)) ||
        { rm -f "$GIT_DIR/index" && git read-tree HEAD; }
}

# Are the files of HEAD's commit all there? (Their contents are git's to check as it reads them.)
is_complete() { git rev-list --objects --no-walk --exclude-promisor-objects HEAD >/dev/null 2>&1; }

# Asked only when git has failed for no other reason, because it reads everything. A git that was killed says nothing.
is_broken() {
    { is_unborn || git rev-parse --quiet --verify 'HEAD^{commit}' &>/dev/null; } &&
        git fsck --no-dangling --no-progress &>/dev/null
    (($? > 0 && $? <= 128))
}

repair_or_fail() {
    is_broken && repair "$1"
    finish failed "git fails here: $1; its repository is sound, and the next run tries again"
}

# -------------------------------------------------------------------------------------------- what upstream has

# Talk to the remote: no prompt, no stall, and at most half of the run's time, so that some is left to deploy.
# What it answers is in `answer`, the last of its complaints in `words`, in English as what is said around it. They go
# through a file, not a pipe, which an ssh master left behind would keep open; where nothing may be changed, through one
# that has no name any more.
remote_git() {
    local limit=$(((setting[timeout] + 1) / 2)) says=$GIT_DIR/gitops-words lines=('see above') status=0 talk pid file
    local command=("${GIT[@]}" -c http.lowSpeedLimit=1000 -c http.lowSpeedTime=30 -c remote.origin.tagOpt= "$@")
    if [[ -t 2 ]]; then
        says=''
    elif [[ $dry_run ]]; then
        says=$(mktemp 2>/dev/null) && exec {file}<>"$says" && rm -- "$says" && says=/dev/fd/$file
    fi
    if [[ $says ]]; then
        exec {talk}< <(LANGUAGE=en exec "${command[@]}" 9<&- 2>"$says")
    else
        exec {talk}< <(exec "${command[@]}" 9<&-)
    fi
    pid=$!
    IFS= read -r -d '' -t "$limit" answer <&"$talk" # until git has ended, as timeout(1) would wait, without its process
    if (($? > 128)); then
        kill -TERM "$pid" 2>/dev/null
        IFS= read -r -d '' -t 5 _ <&"$talk"
        (($? <= 128)) || kill -KILL "$pid" 2>/dev/null
        status=$TIMED_OUT
    fi
    exec {talk}<&-
    wait "$pid" || status=$((status ? status : $?))
    answer=${answer%$'\n'}
    ((status)) || return 0
    [[ ! -s $says ]] || mapfile -t lines <"$says"
    ((status != TIMED_OUT)) || lines+=("no end within $limit s")
    printf '%s\n' "${lines[@]}" >&2
    while ((${#lines[@]} > 1)) && is_advice "${lines[-1]}"; do unset 'lines[-1]'; done
    words=${lines[-1]%.}
    return "$status"
}
TIMED_OUT=124 # as timeout(1) has it, and git never

# What git says below the complaint of an ssh, which tells more.
is_advice() {
    [[ ! $1 || $1 == 'fatal: Could not read from remote repository.' ||
        $1 == 'Please make sure you have the correct access rights' || $1 == 'and the repository exists.' ]]
}

# No terminal, no askpass; ssh must not ask either, nor wait for ever. An operator's own ssh command stands as it is.
forbid_prompts() {
    export GIT_TERMINAL_PROMPT=0 GIT_ASKPASS=true SSH_ASKPASS=true
    [[ ! ${GIT_SSH_COMMAND:-}${GIT_SSH:-}${config[core.sshcommand]:-} ]] || return 0
    export GIT_SSH_COMMAND='ssh -o BatchMode=yes -o ConnectTimeout=10'
    GIT_SSH_COMMAND+=' -o ServerAliveInterval=15 -o ServerAliveCountMax=2'
    ours+=(GIT_SSH_COMMAND)
}

# The tracked branch: gitops.branch, else upstream's default. That is asked for only where nothing agrees on it.
find_branch() {
    branch=${setting[branch]:-$default_branch}
    [[ $branch && (${setting[branch]} || $branch == "$hinted_branch") ]] || follow_default
}

follow_default() {
    ask_default || say_unreachable "$words"
    branch=$answer
    [[ $branch ]] || finish missing "$origin has no default branch; \
git -C '$checkout' config gitops.branch <branch>"
    [[ $branch != "$default_branch" ]] || return 0
    list_refs || repair_or_fail 'its refs cannot be read' # of the new branch nothing may have been read
    [[ $dry_run ]] || git symbolic-ref refs/remotes/origin/HEAD "refs/remotes/origin/$branch"
    default_branch=$branch
}

# The branch that the remote's HEAD names, in `answer`; empty if it names none. False: no answer.
ask_default() {
    remote_git ls-remote --symref origin HEAD || return
    if [[ $answer =~ ^ref:\ refs/heads/([^[:space:]]+) ]]; then answer=${BASH_REMATCH[1]}; else answer=''; fi
    is_branch "$answer" || answer=''
}

say_unreachable() {
    list_refs || ! is_broken || repair "$1" # it may be this side that git cannot read
    finish unreachable "$origin cannot be fetched: $1; tried again later"
}

say_gone() {
    finish missing "the branch $branch is gone from $origin; nothing was touched; \
git -C '$checkout' config gitops.branch <branch>"
}

# Bring the branch's commit: `target`. What was `known` of upstream before is nobody's own.
fetch() {
    local quiet=--quiet
    known=${tracking[$branch]:-}
    [[ ! -t 2 ]] || quiet=--progress
    if [[ $dry_run ]]; then
        remote_git ls-remote origin "refs/heads/$branch" || say_unreachable "$words"
        target=${answer%%$'\t'*}
        [[ $target ]] || say_gone
        git cat-file -e "$target" 2>/dev/null || remote_git fetch "$quiet" --no-auto-maintenance --no-tags \
            --no-write-fetch-head --refmap= origin "refs/heads/$branch" || say_unreachable "$words"
    else
        # Not by FETCH_HEAD, which a person's fetch of another branch writes too.
        remote_git fetch "$quiet" --no-auto-maintenance --no-recurse-submodules --no-write-fetch-head "$@" \
            origin "+refs/heads/$branch:refs/remotes/origin/$branch" || { fetch_again "$?" && return; }
        read_refs
        target=${tracking[$branch]:-}
    fi
    is_commit "$target" || finish failed "git fetch brought no commit of $branch"
}

# Why did the fetch fail? Ask the remote, which answers more clearly than git's words; then once more, if that may help.
fetch_again() {
    local status=$1 why=$words
    ((status != TIMED_OUT)) || say_unreachable "$why" # too slow already
    remote_git ls-remote origin "refs/heads/$branch" || say_unreachable "$why"
    if [[ ! $answer ]]; then
        [[ ! ${setting[branch]} && ! $refetched ]] || say_gone
        refetched=yes
        follow_default
        fetch
    elif is_broken; then
        repair "$why"
    elif [[ ! $refetched ]]; then
        refetched=yes
        remote_git remote prune origin || say_unreachable "$words" # a stale tracking branch `a` is in the way of `a/b`
        fetch --no-tags                                            # and so may a tag be
    else
        say_unreachable "$why"
    fi
}

# ------------------------------------------------------------------------------------------------ moving the tree

# A note says that the tree is being moved, or that its deploy has begun ("tried"), until the deploy is recorded. It is
# written over the last one, at the length of the longest: emptied first, a run that dies there has a deploy forgotten.
note() { printf '%-135s\n' "$*" 2>/dev/null 1<>"$unfinished" || finish failed "'$unfinished' cannot be written"; }
forget_note() { : >"$unfinished"; }

# A run died in the middle: if the tree had not arrived, put it back; either way a deploy is owed.
settle_unfinished() {
    local from to
    [[ -s $unfinished ]] || return 0
    read -r from to tried <"$unfinished"
    [[ $from != "$to" && ($head == "$from" || ! $head) ]] || return 0
    [[ ! $dry_run ]] || finish unchanged "would first put right the move to ${to:0:10}, which a run began"
    put_back "$from" "$to" ||
        finish failed "a run died as it moved the tree to ${to:0:10}, and that could not be undone; the next run tries again"
    note "$from $from $tried"
}

# Undo a move from one commit to another that stopped half way. A file that it can have written holds the beginning
# of what upstream has, and goes; one that holds anything else is a person's later work, and is put beside.
# False: it was cut short itself, or the disk is full, and it is to be done again.
put_back() {
    local from=$1 to=$2 path aside changes i gone=()
    # The index, if the dead run came to write it; else git may refuse. But one that was killed has not refused.
    git read-tree -i -m "$to" "$from" 2>/dev/null || (($? <= 128)) || return
    mapfile -d '' -t changes < <(
        git diff --name-status -z --no-renames --ignore-submodules=all "$from" "$to"
        printf '%s\0' "$?"
    )
    [[ ${changes[-1]} == 0 ]] || return
    for ((i = 0; i + 1 < ${#changes[@]}; i += 2)); do
        path=${changes[i + 1]}
        if is_behind_link "$path"; then
            continue # not the tree's
        elif [[ ! -L $path && (-d $path || ! -e $path) ]]; then
            : # to be written below, or in the way of that
        elif begins "$path" "$to"; then
            rm -f -- "$path"
            [[ $path != */* ]] || rmdir -p --ignore-fail-on-non-empty -- "${path%/*}"
        elif is_like "$path" "$from"; then
            continue
        else
            aside=$path.kept-$(now)
            mv -- "$path" "$aside" || continue
            kept+="; '$path' was changed since a run died here, and is kept as '$aside'"
        fi
        [[ ${changes[i]} == A ]] || gone+=("$path")
    done
    # Twice, if need be: a disk that is full to the last page may say so once more than it is.
    ((${#gone[@]} == 0)) || restore || restore --force || is_restored
}

is_behind_link() {
    local folder=$1
    while [[ $folder == */* ]]; do
        folder=${folder%/*}
        [[ ! -L $folder ]] || return 0
    done
    return 1
}

restore() { printf '%s\0' "${gone[@]}" | git checkout-index --quiet "$@" -z --stdin; }

# Or does the index lack what could not be restored? Then a person has come and staged its deletion.
is_restored() {
    for path in "${gone[@]}"; do
        is_like "$path" "$from" || ! git ls-files --error-unmatch -- ":(top,literal)$path" &>/dev/null || return
    done
}

# What a file or a link holds, and how it compares with the file of that name in a commit.
shown() { if [[ -L $1 ]]; then readlink --no-newline -- "$1"; else cat -- "$1"; fi; }
begins() { [[ $(shown "$1" | sha256sum) == "$(in_commit "$1" "$2" | head -c "$(shown "$1" | wc -c)" | sha256sum)" ]]; }
is_like() { [[ $(shown "$1" | sha256sum) == "$(in_commit "$1" "$2" | sha256sum)" ]]; }
in_commit() { git cat-file --filters "$2:$1" 2>/dev/null; }

# Put the tracked branch at a commit and the tree with it. git switch does it as reset --keep would, but it keeps
# what is staged, refuses to overwrite ignored files too, and comes back from another branch. False: refused,
# with `in_the_way` naming the files, or failed, with everything put back.
move_to() {
    local to=$1 from=$head says status=0 taken=''
    [[ $from ]] || from=$(git hash-object -t tree /dev/null)
    note "$from $to $tried"
    # In English, for it is read.
    says=$(LANGUAGE=en exec "${mortal[@]}" \
        "${GIT[@]}" switch --quiet --no-overwrite-ignore -C "$branch" "$to" 2>&1 9<&-) || status=$?
    hear
    ((status == 1)) || in_the_way=() # a refusal exits 1; what fails is fatal, and may print anything
    [[ $says != *"/index.lock': File exists"* ]] || taken=yes
    if ((status == 0)) || has_arrived "$to"; then
        if is_written "$from" "$to"; then
            head=$to head_branch=$branch moved=yes
            keep_overwritten_commit
            return 0
        fi
        take_head_back
    fi
    # A refusal comes before the first file is written, and so does a lock; anything else may have come later.
    if ((${#in_the_way[@]} == 0)) && [[ ! $taken ]] && ! is_in_the_midst && ! put_back "$from" "$to"; then
        words+='; not every file could be put back, which the next run tries again'
    elif [[ $owed ]]; then
        note "$from $from $tried"
    else
        forget_note
    fi
    [[ $taken ]] || return 1
    bring_retired_submodules
    finish unreachable "a git at work here holds '$GIT_DIR/index.lock'; tried again later"
}

# Pass on what git `says`. Its last line is in `words`; where it refuses to overwrite files their names are `in_the_way`.
hear() {
    local line
    [[ ! $says ]] || printf '%s\n' "$says" >&2
    words=${says##*$'\n'}
    in_the_way=()
    while IFS= read -r line; do
        [[ $line == $'\t'* ]] && in_the_way+=("${line#$'\t'}")
    done <<<"$says"
}

# Files that git cannot write or remove keep it neither from moving HEAD nor from saying that all is well. Is one of
# those that it had to change not as it should be?
is_written() {
    [[ $'\n'$says == *$'\n'@(error|warning)': '* ]] || return 0
    ! IFS= read -r -d '' _ < <(LC_ALL=C comm -z -12 \
        <(git diff --name-only -z --no-renames --ignore-submodules=all "$1" "$2") \
        <(git ls-files -z --modified --deleted --others | LC_ALL=C sort -zu))
}

# A git commit that waited for its editor may have moved the branch while git wrote the tree, and before git did.
# What the branch was at last is in its log, where git has moved it.
keep_overwritten_commit() {
    local tip=${local_branch[$branch]:-} was
    [[ $tip && $tip != "$head" ]] && read -r was _ < <(tail -n 1 "$common_dir/logs/refs/heads/$branch" 2>/dev/null) &&
        [[ $was != "$tip" ]] && is_commit "$was" && has_own_commits "$was" && keep "$was" "$branch"
}

# HEAD and the branch as they were before a move.
take_head_back() {
    git update-ref --stdin <<<"update refs/heads/$branch \"${local_branch[$branch]:-}\""
    if [[ $head_branch ]]; then
        git symbolic-ref HEAD "refs/heads/$head_branch"
    elif [[ $head ]]; then
        git update-ref --no-deref HEAD "$head"
    fi
}

# git moves HEAD last. One that was killed after that has failed at nothing.
has_arrived() { [[ $(git rev-parse --verify --quiet --symbolic-full-name HEAD) == "refs/heads/$branch" &&
    $(git rev-parse --verify --quiet HEAD) == "$1" ]]; }

# Is a person in the middle of a merge, a rebase or the like?
is_in_the_midst() {
    local sign
    for sign in MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD rebase-merge rebase-apply; do
        [[ -e $GIT_DIR/$sign ]] && return
    done
    [[ $(git ls-files --unmerged) ]]
}

# Move to the target or say whose work is in the way.
move() {
    retire_submodules
    move_to "$target" && return
    if ((${#in_the_way[@]})) && [[ ${setting[dirty]} == stash ]]; then
        put_into_stash && move_to "$target" && return
    fi
    bring_retired_submodules
    local there="$branch ${target:0:10}"
    ((${#in_the_way[@]} == 0)) || finish dirty "changes here are in the way of $there: ${in_the_way[*]}; \
commit or stash them, or git -C '$checkout' config gitops.dirty stash"
    is_in_the_midst && finish dirty "a merge or rebase is unfinished here, in the way of $there; finish or abort it"
    is_broken && repair "$words"
    finish failed "the tree could not be moved to $there, and was put back: $words"
}

# Stash what is in the way and leave other work in place; but git stash cannot be told of a staged deletion by its
# path, and then all changes to tracked files go.
put_into_stash() {
    local stash=(git stash push --quiet --message "gitops: in the way of ${target:0:10}")
    GIT_LITERAL_PATHSPECS=1 "${stash[@]}" --all -- "${in_the_way[@]}" || "${stash[@]}" || return
    kept+="; what was in the way is in the stash $(git rev-parse --short refs/stash): ${in_the_way[*]}"
}

# Commits that only this checkout has would be lost to sight when their branch moves: keep them, or refuse.
keep_local_commits() {
    local tip=${local_branch[$branch]:-}
    [[ $head || ! -e $GIT_DIR/index || ! $(git ls-files) ]] ||
        finish dirty "the branch $(git symbolic-ref --short HEAD) has no commit yet, but files are staged here; commit them"
    [[ $tip ]] && has_own_commits "$tip" && keep_or_refuse "$tip" "$branch"
    [[ ! $head || $head_branch ]] || { has_own_commits "$head" --branches && keep_or_refuse "$head" 'a detached HEAD'; }
}

has_own_commits() {
    local tip=$1 own
    [[ $tip == "$target" || $tip == "$deployed" || $tip == "$known" ]] && return 1
    own=$(git rev-list --max-count=1 "$tip" --not "$target" ${known:+"$known"} ${deployed:+"$deployed"} "${@:2}") ||
        repair_or_fail 'its history cannot be read' # and so it cannot be said that nothing would be lost
    [[ $own ]]
}

keep_or_refuse() {
    [[ ${setting[diverged]} == reset ]] || finish diverged "${failure:+$failure; }$2 has commits at ${1:0:10} that \
upstream does not have; push them, or git -C '$checkout' config gitops.diverged reset, which keeps them under \
refs/gitops/backup"
    keep "$@"
}

keep() {
    local ref
    ref=refs/gitops/backup/$(now)
    [[ ! $dry_run && ! $(git for-each-ref --points-at="$1" refs/gitops/backup) ]] || return 0
    while ! git update-ref "$ref" "$1" ''; do
        [[ $ref == *+++ ]] && finish failed "the commits at ${1:0:10} cannot be kept as $ref"
        ref+=+
    done
    kept+="; local commits of $2 are kept as $ref"
}

# Say what a run would do; what would refuse the move is asked of a copy of the index.
say_what_would_move() {
    local copy says
    copy=$(mktemp) || finish failed "no temporary file can be made"
    if cp -- "$GIT_DIR/index" "$copy" 2>/dev/null; then
        GIT_INDEX_FILE=$copy git update-index -q --refresh >/dev/null
        says=$(GIT_INDEX_FILE=$copy git read-tree --dry-run -um --exclude-per-directory=.gitignore \
            "${head:-$(git hash-object -t tree /dev/null)}" "$target" 2>&1) || {
            rm -f "$copy"
            finish dirty "changes here would be in the way of $branch ${target:0:10}: $says"
        }
    fi
    rm -f "$copy"
    finish unchanged "would move from ${head:0:10} to $branch ${target:0:10}${setting[deploy]:+ and deploy it}"
}

# A submodule that upstream has dropped: its files go if nothing of a person's is among them; its repository stays.
# No configuration, the user's or the tree's, is to hide any of that, and what cannot be read is not empty.
retire_submodules() {
    [[ ${setting[submodules]} == true && $head ]] || return 0
    local modes path says look='git status --porcelain --untracked-files=all --ignored --ignore-submodules=none'
    while IFS= read -r -d '' modes && IFS= read -r -d '' path; do
        [[ $modes == ':160000 '* && $modes != ':160000 160000 '* && -e $path/.git ]] || continue
        says=$(cd "$path" && in_checkout bash -c "$look && git submodule --quiet foreach --recursive '$look'") &&
            [[ ! $says ]] ||
            finish dirty "upstream has dropped the submodule $path, which holds changes; commit or remove them"
        git submodule --quiet deinit --force -- "$path"
        retired+=("$path")
    done < <(git diff --raw -z --no-renames --ignore-submodules=none "$head" "$target")
}

# The move was refused: the commit that stays has them.
bring_retired_submodules() { ((${#retired[@]} == 0)) || bring_submodules "${retired[@]}"; }

# Bring the submodules at these paths, or all.
bring_submodules() {
    [[ ${setting[submodules]} == true && -e .gitmodules ]] || return 0
    local says in_the_way
    says=$({
        git submodule --quiet sync --recursive && remote_git submodule --quiet update --init --recursive -- "$@"
    } 2>&1) && return
    hear
    ((${#in_the_way[@]} == 0)) || finish dirty "changes in a submodule are in the way of ${head:0:10}: \
${in_the_way[*]}; $words; commit or stash them there"
    finish unreachable "submodules of ${head:0:10} cannot be brought: $words; tried again later"
}

# ------------------------------------------------------------------------------------------------------ deploying

# Run an operator's command as if typed here: none of our settings for git, and not the lock.
in_checkout() {
    (
        unset "${ours[@]}"
        export GITOPS_REPOSITORY=${repository:-$name} GITOPS_REF=refs/heads/$branch
        export GITOPS_BEFORE=$before GITOPS_AFTER=$head
        exec "${mortal[@]}" "$@"
    ) 9<&-
}

check_signature() {
    [[ ${setting[verify]} != true ]] || git verify-commit "$target" ||
        finish unverified "${target:0:10} has no signature that git verify-commit accepts; nothing was moved"
}

# Does what changed since the last deploy concern this host? When in doubt, yes.
concerns_deploy() {
    local patterns
    [[ ${setting[paths]} && $deployed && $deployed != "$head" && ! $tried && ! $force ]] || return 0
    read -r -a patterns <<<"${setting[paths]//$'\n'/ }"
    ! git diff --quiet --ignore-submodules=none "$deployed" "$head" -- "${patterns[@]}" 2>/dev/null
}

# Deploy what the tree holds, and look whether it is well. What failed is in `failure`.
deploy() {
    tried=tried
    note "$head $head $tried"
    failure="gitops.deploy failed"
    [[ ! ${setting[deploy]} ]] || in_checkout bash -c "${setting[deploy]}" || { failure+=" with exit $?" && return 1; }
    done_with deployed
    failure="gitops.health did not succeed within ${setting[healthtimeout]} s"
    is_healthy || return 2
    [[ ! ${setting[health]} ]] || done_with healthy
}

is_healthy() {
    [[ ${setting[health]} ]] || return 0
    local left=${setting[healthtimeout]} end=$((SECONDS + setting[healthtimeout]))
    ((left)) || left=10 # of one try
    # One try may hang, and must not take the time of all.
    until in_checkout timeout --foreground --kill-after=1 "$((left < 1 ? 1 : left > 10 ? 10 : left))" \
        bash -c "${setting[health]}"; do
        ((SECONDS < end)) || return 1
        sleep 1
        left=$((end - SECONDS))
    done
}

record_deploy() {
    if [[ $bad ]]; then
        git update-ref --stdin <<<"update $state/deployed $head"$'\n'"delete $state/bad"
    elif [[ $deployed != "$head" ]]; then
        git update-ref "$state/deployed" "$head"
    fi || finish failed "$state/deployed could not be moved to ${head:0:10}, which is deployed"
    forget_note
}

# Back to what was last deployed with success. It is told truthfully if that fails too.
restore_last_good() {
    local from=${target:0:10} to=${deployed:0:10}
    read_refs
    keep_local_commits
    [[ $head == "$deployed" ]] || move_to "$deployed" ||
        finish deploy-failed "$failure at $from, and $to could not be restored: ${in_the_way[*]:-$words}"
    bring_submodules
    local why=$failure
    deploy || finish deploy-failed "$why at $from; $to was restored, but there $failure"
    forget_note
    finish rolled-back "$why at $from, so $to was restored and deployed; \
push a better commit, or gitops_sync.sh --force $name"
}

# Upstream is still at a commit whose health check failed. Finish a roll-back that was cut short; else only say so.
stay_off_bad_commit() {
    failure='gitops.health did not succeed'
    [[ ($head == "$deployed" && ! $owed) || $dry_run ]] || restore_last_good
    finish rolled-back "upstream is still at ${bad:0:10}, whose health check failed, so ${deployed:0:10} stays; \
push a better commit, or gitops_sync.sh --force $name"
}

roll_back() {
    [[ $deployed && $deployed != "$head" ]] ||
        finish deploy-failed "$failure at ${head:0:10}, and nothing else was deployed before"
    git update-ref "$state/bad" "$head" || finish failed "$state/bad cannot be written"
    restore_last_good
}

# Pay the deploy that a move made due, or an earlier run left owing.
pay_deploy() {
    if [[ ! ${setting[deploy]}${setting[health]} ]]; then
        [[ $moved || ! $deployed || $deployed == "$head" ]] || did='recorded as deployed'
        [[ ! $moved$did ]] || done_with deployed
    elif ! concerns_deploy; then
        kept+="; nothing in gitops.paths changed, so nothing was deployed"
    elif deploy; then
        did=deployed
    else
        (($? != 2)) || roll_back
        finish deploy-failed "$failure at ${head:0:10}, which stays; the next run deploys it again"
    fi
    record_deploy
}

# Keep the repository small. git gc --auto asks the same; looking first spares its process. It detaches itself.
tidy() {
    local loose=("$common_dir"/objects/17/*) packs=("$common_dir"/objects/pack/*.pack)
    ((${#loose[@]} <= 26 && ${#packs[@]} <= 50)) || git gc --auto --quiet
}

# ------------------------------------------------------------------------------------------------------- the run

main() {
    trap end_at_term TERM
    take_lock
    finish_interrupted_swap
    [[ -e .git ]] || clone
    find_repository
    check_owner
    read_settings || repair_or_fail 'git cannot read it'
    forbid_prompts
    check_origin
    ! is_paused || finish paused "paused; git -C '$checkout' config --unset gitops.paused"
    clear_stale_locks
    read_refs
    before=$head
    is_old_news && finish unchanged "${head:0:10} is here and deployed"
    settle_unfinished
    find_branch
    fetch
    done_with fetched
    [[ ! -s $unfinished && $deployed == "$head" && ! $force ]] || owed=yes

    [[ $target != "$bad" || ! $deployed || $force ]] || stay_off_bad_commit
    if [[ $head == "$target" && $head_branch == "$branch" ]]; then
        if [[ ! $owed ]]; then
            is_complete || repair_or_fail 'objects are missing'
            finish unchanged "$branch is at ${head:0:10}, as upstream"
        fi
        check_signature
        [[ ! $dry_run ]] || finish unchanged "would deploy ${head:0:10}"
    else
        check_signature
        keep_local_commits
        [[ ! $dry_run ]] || say_what_would_move
        move
    fi
    bring_submodules
    pay_deploy
    tidy

    local outcome=unchanged
    [[ ! $moved$did ]] || outcome=updated
    finish "${cloned:-$outcome}" "$branch is at ${head:0:10}${moved:+, moved from ${before:0:10}}${did:+, $did}"
}

main
