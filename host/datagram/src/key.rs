//! Keys that seal and open frames, one for each direction, queue and epoch.
