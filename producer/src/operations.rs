//! What an operator does, through the ports alone: looking ([`status`]) and dealing with dead jobs ([`dead`]). The
//! command line and the HTTP face say the same because both say this.

mod dead;
mod scan;
mod status;

pub use dead::{
    DEAD_PAGE_MAX, DeadDetails, DeadError, DeadPage, Dropped, Requeue, Requeued, dead_drop, dead_list,
    dead_requeue, dead_show,
};
pub use scan::Which;
pub use status::{Intake, LaneStatus, QueueStatus, Service, Status, status};
